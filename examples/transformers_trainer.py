"""RigL under the transformers Trainer, on a small GPT-2."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import regrow

STEPS = 60


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(16, (400, 16)).cumsum(1) % 16
    examples = [{"input_ids": row, "labels": row} for row in tokens]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=32, n_layer=2, n_head=2))

    regrow.sparsify(model, sparsity=0.8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    method = regrow.RigL(model, optimizer, total_steps=STEPS, update_every=10)

    arguments = TrainingArguments(
        "trainer",
        max_steps=STEPS,
        per_device_train_batch_size=20,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=examples, optimizers=(optimizer, None)).train()
    print(method)
    print(regrow.summary(model))
    model.save_pretrained("model")  # `from_pretrained` reads it, dense


if __name__ == "__main__":
    main()
