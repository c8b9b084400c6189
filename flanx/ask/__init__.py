"""`flanx ask`: one model that answers people and programs interactively, in a terminal, on a page, over HTTP."""
