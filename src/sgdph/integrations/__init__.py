"""One small module per framework that has its own loop. Each is imported only when it is used."""
