"""`flanx ask`: one model that answers people and programs while they wait, in a terminal, on a page, over HTTP."""
