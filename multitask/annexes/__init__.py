"""Commands and training extensions on top of the core, which does not depend on them."""
