"""The application behind the command `regrow`, which needs the extra `train`; the library never imports it."""
