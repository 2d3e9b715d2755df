"""One small module per framework whose loop is not ours; each is imported only when asked for."""
