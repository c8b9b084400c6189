"""Tables of tasks and their templates: the format, the loader, and every check that refuses a wrong one.

Standard library only; importing this module or calling `load_tables` touches no data set and imports no TensorFlow.

A root is a folder with `tables/` and `templates/`. Ours is the installed `flanx.tasks`; more are named by the
environment variable FLANX_TABLES (folders separated by the path separator), read in order after ours. Within one
root a name may stand once; in a later root a row is laid over the row of the same name key by key, and a template
block replaces the block of the same name.

`tables/collections.toml` names the collections, one section each:

    [cot]
    role     = "paper"               # "paper": part of the 1,836; "held_out": evaluation only; "extra": all others
    total    = 9                     # loading fails when the number of rows differs (not checked where absent)
    defaults = {styles = ["zsopt", "fsopt"], cap = 100000, cot = true}        # laid under every row of the collection

`tables/<collection>.toml` holds its tasks, one section each; section `gsm8k` of `cot.toml` is task `cot_gsm8k`. Long
uniform lists stand in `tables/<collection>.csv` instead: a header line with `name` and any of the keys below
(values as text; lists separated by spaces; `splits` as "train=... test=...").

    [gsm8k]
    source       = "tsv:cot/gsm8k_train.tsv"      # "<kind>:<place>"; kinds: see flanx/data/source.py (suite:, tsv:, ...)
    splits       = {train = "train"}              # our split name = the source's; exemplars come from `train` only
    columns      = ["question", "answer", "rationale"]  # the source's columns; needed where `fields` does not name them
    fields       = "keep(premise, hypothesis) | choose(label, ['no', 'yes'])"   # see flanx/data/fields.py; absent: as is
    templates    = "cot_math"                     # one block or a list of blocks
    inversions   = ["cot_question"]               # blocks of the inverted tasks, at 0.3 against 1; train split only
    styles       = ["zsopt", "zsnoopt", "fsopt", "fsnoopt"]
    metrics      = ["exact_match"]                # see METRICS
    cap          = 30000                          # examples that count for the mixing rate at most
    num_examples = 7473                           # size of the train split, where known
    held_out     = false                          # true: refused in every training mixture
    cot          = true                           # the target holds a rationale
    dataset      = "gsm8k"                        # the original data set; the section's name where absent
    licence      = "MIT"
    access       = "open"                         # "open", "form" (a form or log-in first) or "user" (files you supply)
    bytes        = 3000000                        # size of the download, where known
    note         = "free text; a guess says so"

`templates/<any>.toml` holds template blocks by cluster. A block is a list of prompts, each [input, target] or
[head, input, target]; `{name}` stands for a field, `{{` and `}}` for braces:

    [nli]
    none    = ["{premise}\\n{hypothesis}\\n{options}", "{answer}"]              # the bare form, required; template `nli:none`
    prompts = [                                                                # templates `nli:0`, `nli:1`, ...
      ["{premise}\\n\\nDoes it follow that {hypothesis}?\\n{options}", "{answer}"],
      ["Read the text, then judge the claim.\\n\\n", "Text: {premise}\\nClaim: {hypothesis}\\n{options}", "{answer}"],
    ]

A head is printed once: before the input, or before all the exemplars of a few-shot prompt; it may use fields too.
`{options}` is the list of options with a drawn heading and markers; with a `noopt` style, or where a row has none, it
goes, together with the line break before it, so the words about options belong to the list and not to the prompt.
`{answer}` follows the marker where the markers are letters or numbers. `templates/style.toml` holds the option
headings, the markers and the few-shot styles.

A row of the embedded suite, complete:

    [addition]                                    # in tables/suite.toml: the task suite_addition
    source    = "suite:addition"                  # flanx.suite.examples("addition", split)
    splits    = {train = "train", validation = "validation"}
    columns   = ["question", "answer"]            # what the generator's dicts hold (plus "options", a list, if any)
    templates = "suite_arithmetic"                # block of templates/suite.toml
    metrics   = ["exact_match"]
"""
