"""The process that owns the model. It may die: the gateway starts another."""
