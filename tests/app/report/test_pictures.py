import json

import numpy as np
import pytest
from PIL import Image
from tiny import cli, write_folder, write_recipe

from regrow.app.report import centre_and_border, draw, mean_connections


def test_centre_and_border_by_hand():
    counts = np.zeros((8, 8))
    counts[2:6, 2:6] = 3  # the central half by half
    counts[0, :] = counts[-1, :] = counts[:, 0] = counts[:, -1] = 1  # an eighth is one ring
    assert centre_and_border(counts) == (3, 1)
    assert centre_and_border(np.arange(28 * 28.0).reshape(28, 28)) == pytest.approx((391.5, 391.5))


def test_pictures_of_a_run(tmp_path, capsys):
    # long enough for RigL to find that the border of the images holds nothing
    keys = ["steps=400", "sparsify.sparsity=0.9", "method.stop_fraction=0.9", "log_every=20"]
    run = tmp_path / "run"
    assert cli(capsys, "train", write_recipe(tmp_path), f"out={run}", *keys).code == 0
    pictures, note = draw(run)  # again, over those that `train` drew
    assert [path.name for path in pictures] == ["curves.png", "first-layer.png", "first-layer.gif"]
    assert note == ""
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 20  # something is drawn
    maps = [json.loads(line) for line in (run / "maps.jsonl").read_text().splitlines()]
    with Image.open(run / "first-layer.gif") as animation:
        assert animation.n_frames == min(len(maps), 60)
    assert not list(run.glob("*.writing*"))

    first, last = mean_connections(run)["first"], mean_connections(run)["last"]
    assert last.centre > 1.2 * last.border
    assert last.centre > first.centre
    assert {(sum(one["counts"]), tuple(one["size"])) for one in maps} == {(sum(maps[0]["counts"]), (8, 8))}


def test_static_has_a_map_but_no_animation(tmp_path, capsys):
    ended = cli(capsys, "train", write_recipe(tmp_path), f"out={tmp_path / 'run'}", "method=static")
    assert ended.code == 0
    pictures, _ = draw(tmp_path / "run")
    assert [path.name for path in pictures] == ["curves.png", "first-layer.png"]


@pytest.mark.parametrize("keys", [["method=dense"], ["model={name: lenet, size: 16, classes: 4}"]])
def test_where_there_is_no_map(tmp_path, capsys, keys):
    data = write_folder(tmp_path / "larger", size=16)
    model = ["model={name: mlp, inputs: 256, hidden: [16], classes: 4}", f"data.folder={data}"]
    ended = cli(capsys, "train", write_recipe(tmp_path), f"out={tmp_path / 'run'}", "steps=20", *model, *keys)
    assert ended.code == 0, ended.err
    assert "no map of the input pixels: it needs a sparse linear first layer on images" in ended.out
    assert mean_connections(tmp_path / "run") == {}


@pytest.mark.parametrize("kind", ["sup", "edst", "dst", "lottery"])
def test_pictures_of_tickets(tmp_path, capsys, kind):
    keys = {
        "sup": ["tickets={name: sup, share: 0.4, cycle_steps: 8}"],
        "edst": ["tickets=edst", "validation=0.1"],
        "dst": ["tickets={name: dst, tickets: 2}", "steps=20"],
        "lottery": ["tickets={name: lottery, tickets: 2}", "steps=10"],
    }
    run = tmp_path / "run"
    ended = cli(capsys, "train", write_recipe(tmp_path), f"out={run}", *keys[kind])
    assert ended.code == 0, ended.err
    for name in ("tickets", "overlap"):
        assert str(run / f"{name}.png") in ended.out
        assert (run / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
        with Image.open(run / f"{name}.png") as image:
            assert min(image.size) > 300
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 20
