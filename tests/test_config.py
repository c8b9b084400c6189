"""gin binding: what a mistake says, and that the config written beside a run can be given back."""

import importlib
import pathlib
import re

import pytest

from flanx import config
from flanx.errors import UserError

HEAD = "from __gin__ import dynamic_registration\nfrom tests import test_config as t\n\n"


def run(steps: int, name: str = "a", model: object = None) -> tuple[int, str, object]:
    """The function that the gin files of these tests bind."""
    return steps, name, model


class Box:
    def __init__(self, width: int) -> None:
        self.width = width


@pytest.fixture
def gin_file(tmp_path: pathlib.Path):
    def write(text: str, name: str = "a.gin") -> str:
        path = tmp_path / name
        path.write_text(HEAD + text)
        return str(path)

    return write


def test_files_then_bindings_then_call(gin_file, tmp_path):
    path = gin_file("STEPS = 3\nMODEL = @t.Box()\nt.Box.width = 7\nt.run:\n  steps = %STEPS\n  model = %MODEL\n")
    config.parse([path], ["STEPS=5"])
    steps, name, model = config.call(run, tmp_path / "run")
    assert (steps, name, model.width) == (5, "a", 7)
    assert config.value("STEPS") == 5

    config.parse([str(tmp_path / "run" / "config.gin")])
    assert config.call(run)[0] == 5
    assert "steps = %STEPS" in (tmp_path / "run" / "operative_config.gin").read_text()


def test_a_parameter_is_bound_by_its_own_name(gin_file):
    config.parse([gin_file("t.run.steps = 1\n")], ["t.run.name='b'"])
    assert config.call(run)[1] == "b"


def test_the_value_of_a_macro_is_that_of_the_macro_it_names(gin_file):
    config.parse([gin_file("MORE = 6\nSTEPS = %MORE\nt.run.steps = %STEPS\n")])
    assert config.value("STEPS") == 6


MISTAKES = {
    "unknown macro on the command line": (
        "STEPS = 3\nt.run.steps = %STEPS\n",
        ["STPES=4"],
        ["'STPES'", "command line", "'STEPS'"],
    ),
    "undefined macro in a file": (
        "STEPS = 3\nt.run.steps = %STEP\nt.run.name = %STEPS\n",
        [],
        ["'STEP'", "a.gin:5", "'STEPS'"],
    ),
    "macro that nothing uses": (
        "STEPZ = 3\nSTEPS = 1\nt.run.steps = %STEPS\n",
        [],
        ["'STEPZ'", "a.gin:4", "used by nothing", "'STEPS'"],
    ),
    "required macro": ("STEPS = %gin.REQUIRED\nt.run.steps = %STEPS\n", [], ["'STEPS'", "--gin.STEPS="]),
    "unknown parameter": ("t.run.stepz = 3\n", [], ["'stepz'", "a.gin", "'steps'"]),
    "unknown configurable": ("t.runn.steps = 3\n", [], ["runn", "a.gin"]),
    "unknown include": ("include 'runs/trian.gin'\n", [], ["'runs/trian.gin'", "a.gin:4", "'runs/train.gin'"]),
    "unknown module": ("from flanx import optimm\n", [], ["flanx.optimm", "a.gin:4"]),
    "syntax": ("t.run.steps = = 3\n", [], ["a.gin", "4"]),
    "text without quotes": ("NAME = 'x'\nt.run.name = %NAME\n", ["NAME=/tmp/x"], ["command line", "quotes"]),
    "no binding at all": ("NAME = 'x'\nt.run.name = %NAME\n", ["NAME"], ["'NAME'", "--gin.NAME=VALUE"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_thing_and_the_place(case, gin_file):
    text, bindings, wanted = MISTAKES[case]
    with pytest.raises(UserError) as caught:
        config.parse([gin_file(text)], bindings)
    message = str(caught.value)
    assert "\n" not in message
    for part in wanted:
        assert part in message, message


def test_an_unknown_file_suggests_the_nearest():
    with pytest.raises(UserError, match=r"runs/tran\.gin.*did you mean 'runs/train\.gin'"):
        config.parse(["runs/tran.gin"])


def test_a_missing_argument_is_named(gin_file):
    config.parse([gin_file("t.run.name = 'x'\n")])
    with pytest.raises(UserError, match="steps"):
        config.call(run)


def test_an_error_inside_the_called_function_is_not_blamed_on_gin(gin_file):
    config.parse([gin_file("t.fails.steps = 1\n")])
    with pytest.raises(TypeError, match="inner"):
        config.call(fails)


def fails(steps: int) -> None:
    raise TypeError(f"inner {steps}")


def test_a_url_for_a_run_is_refused_before_anything_is_written(gin_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.parse([gin_file("t.run.steps = 1\n")])
    with pytest.raises(UserError, match="'gs://bucket/run' is a URL"):
        config.call(run, "gs://bucket/run")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gin"]


def refuse(steps: int, folder: str = "") -> None:
    """A call that refuses its input, after it has left something in `folder`."""
    if folder:
        pathlib.Path(folder, "kept").write_text(str(steps))
    raise UserError("no")


def test_a_refused_call_leaves_no_folder_of_its_own(gin_file, tmp_path):
    config.parse([gin_file("t.refuse.steps = 1\n")])
    with pytest.raises(UserError):
        config.call(refuse, tmp_path / "run")
    assert not (tmp_path / "run").exists()

    config.parse([gin_file(f"t.refuse.steps = 1\nt.refuse.folder = '{tmp_path / 'run'}'\n")])
    with pytest.raises(UserError):
        config.call(refuse, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.gin", "kept", "operative_config.gin", ".flanx.lock")
    }


@pytest.mark.parametrize("file", ["run.json", "manifest.json", "predictions.part", "generations"])
def test_the_config_of_another_commands_folder_stays(gin_file, tmp_path, file):
    """Answers and scores are easily asked for in the folder of the run."""
    for name in (file, "config.gin"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("of another")
    config.parse([gin_file("t.run.steps = 1\nt.run.model = None\n")])
    with pytest.raises(UserError, match=f"it has {file}"):
        config.call(run, tmp_path / "run")
    found = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert found == {file: "of another", "config.gin": "of another"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfTRAIN_STEPS = 5\n",
        b"TRAIN_STEPS = 5\r\nSEED = 3\r\nbatches.DatasetConfig:\r\n  batch_size = 8\r\n",
        b"TRAIN_STEPS\t=\t5",
        "# caf\u00e9\nTRAIN_STEPS = 5.0".encode(),
        b"TRAIN_STEPS = 5_0\nTRAIN_STEPS = 5",
    ],
)
@pytest.mark.parametrize("name", ["a.gin", "my runs/\u00fc b.gin"])
def test_a_gin_file_as_people_have_it(raw, name, tmp_path):
    (tmp_path / "my runs").mkdir()
    (tmp_path / name).write_bytes(raw)
    config.parse(["runs/train.gin", "mixtures/suite.gin", "models/t5_1_1/tiny.gin", str(tmp_path / name)], whole=False)
    assert config.parameter("flanx.train.train", "train_steps") == 5


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        ("TRAIN_STEPS='1000'", "TRAIN_STEPS is '1000' .* it takes a whole number"),
        ("TRAIN_STEPS=", "not a gin value"),
        ("LEARNING_RATE=0.001,", "not a gin value"),
        ("MODEL_DIR=/tmp/x", "a string needs its own quotes"),
        ("train/DatasetConfig.batch_size=3", "nothing is called in the scope"),
        ("train_script.train.total_steps=3", "No configurable matching 'train_script.train'"),
        ("utils.SaveCheckpointConfig.period=7", "did you mean 'flanx.checkpoint.SaveCheckpointConfig'"),
        (
            "MIXTURE_OR_TASK_MODULE='mine'",
            "imports 'mine' .the command line., which runs its code: .*add --import=mine",
        ),
        ("mixture.Mixture.module=['mine.a']", "imports 'mine.a' .* add --import=mine"),
        (
            "train_step.Trainer.optimizer=@optim.adamw_8bit()",
            "put this line into one of yours.* 'from flanx import optim'",
        ),
        ("optim.muon.beta=0.9", "put this line into one of yours, --gin_file, behind 'from __gin__ import dynamic"),
        (
            "optim.adamv.b1=0.9",
            "No configurable matching 'optim.adamv'; did you mean|No configurable matching 'optim.adamv'",
        ),
        ("TRAIN_STEPS 5", "is not a binding: write --gin.NAME=VALUE"),
    ],
)
def test_a_binding_as_people_type_it(binding, said):
    with pytest.raises(UserError, match=said) as caught:
        config.parse(["runs/train.gin", "mixtures/suite.gin", "models/t5_1_1/tiny.gin"], [binding], whole=False)
    assert str(caught.value).count("\n") < 5


# ---- T5X's names -----------------------------------------------------------------------------------------------------


def t5x_macros() -> dict[str, str]:
    """{macro of T5X: "same", "differs" or "absent"}, as docs/t5x.md has it."""
    page = (pathlib.Path(__file__).parent.parent / "docs" / "t5x.md").read_text()
    return dict(re.findall(r"^\| `([A-Z_]+)` \| (same|differs|absent) \|", page, re.MULTILINE))


# all that the gin files of T5X bind (configs/runs and examples, cc342d4), apart from parameters
OF_T5X = re.findall(
    r"\S+",
    """
ACTIVATION_DTYPE BATCH_SIZE BEAM_SIZE CHECKPOINT_PATH DROPOUT_RATE EVALUATOR_NUM_EXAMPLES EVALUATOR_USE_MEMORY_CACHE
EVAL_OUTPUT_DIR EVAL_PERIOD EVAL_STEPS FEATURE_LENGTHS INFER_OUTPUT_DIR INITIAL_CHECKPOINT_PATH JSON_WRITE_N_RESULTS
LABEL_SMOOTHING LEARNING_RATE LOSS_NORMALIZING_FACTOR MIXTURE_OR_TASK_MODULE MIXTURE_OR_TASK_NAME MODEL MODEL_DIR
MODEL_NAME MODEL_OUTPUT_DIR OPTIMIZER OUTPUT_FEATURES RANDOM_SEED SHUFFLE_TRAIN_EXAMPLES TASK_FEATURE_LENGTHS
TF_EXAMPLE_FILE_PATHS TF_EXAMPLE_FILE_TYPE TRAIN_EVAL_MIXTURE_OR_TASK_NAME TRAIN_STEPS TRAIN_STEPS_RELATIVE
USE_CACHED_TASKS USE_CACHED_TASKS_TRAIN_EVAL USE_HARDWARE_RNG VOCABULARY VOCAB_SIZE Z_LOSS adafactor.Adafactor
adafactor.standard_logical_factor_rules checkpoints.Checkpointer decoding.temperature_sample eval_script.evaluate
export_lib.ExportableModule export_lib.create_batch_polymorphic_shapes export_lib.create_inference_function
export_lib.create_postprocessor export_lib.create_preprocessor export_lib.create_preprocessor_from_task
export_lib.save export_lib.write_warmup_examples gin_utils.summarize_gin_config
infer_script.create_task_from_tfexample_file infer_script.infer models.DecoderOnlyModel models.EncoderDecoderModel
models.get_input_vocabulary models.get_output_vocabulary network.DecoderWrapper network.T5Config network.Transformer
network.TransformerConfig optax.adamw optax.clip optax.lion optax.warmup_cosine_decay_schedule optimizers.chain
partitioning.PjitPartitioner partitioning.standard_logical_axis_rules seqio.ByteVocabulary seqio.Evaluator
seqio.Feature seqio.JSONLogger seqio.PyLoggingLogger seqio.SentencePieceVocabulary seqio.TensorBoardLogger
train_script.precompile train_script.train trainer.TerminateOnNanAction trainer.Trainer utils.CheckpointConfig
utils.DatasetConfig utils.RestoreCheckpointConfig utils.SaveCheckpointConfig utils.create_learning_rate_scheduler
utils.get_training_eval_datasets
""",
)


def test_the_page_for_users_of_t5x_has_every_name_and_its_own_names_exist():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "t5x.md").read_text()
    assert [name for name in OF_T5X if f"`{name}`" not in page] == []
    assert {name for name in OF_T5X if name.isupper()} == set(t5x_macros())
    rows = re.findall(r"^\| `\w+\.\w+`.*? \| `(\w+)\.(\w+)`", page, re.MULTILINE)
    homes = {"batches": "data.pipeline.batches", "t5": "models.t5", "palm": "models.palm", "decode": "decoding.decode"}
    assert len(rows) > 10
    for module, name in rows:
        assert hasattr(importlib.import_module(f"flanx.{homes.get(module, module)}"), name), (module, name)


def test_the_page_for_users_of_t5x_says_what_the_commands_do():
    runs = [path.read_text() for path in (config.gin_folder() / "runs").glob("*.gin")]
    runs += [(config.gin_folder() / "models" / "t5_1_1" / "base.gin").read_text()]
    ours = set(re.findall(r"^([A-Z_]+) =|%([A-Z_]+)", "\n".join(runs), re.MULTILINE))
    known = {name for pair in ours for name in pair}
    found = t5x_macros()
    assert len(found) > 20
    for macro, kind in found.items():
        if kind == "same":
            assert macro in known and macro not in config.T5X_MACROS, macro
        elif macro not in known:  # MODEL and VOCABULARY are macros here too, of another kind
            with pytest.raises(UserError) as caught:
                config.parse(["runs/train.gin", "models/t5_1_1/tiny.gin"], [f"{macro}=3"], whole=False)
            assert config.T5X_MACROS[macro] in str(caught.value)
