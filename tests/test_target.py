"""The table of targets: what a key may be, and that it holds no secret."""

import pathlib
import shlex

import pytest

from flanx.errors import UserError
from flanx.launch import job, target

ROOT = pathlib.Path(__file__).resolve().parent.parent


def read(tmp_path: pathlib.Path, text: str, name: str = "", **given: object) -> target.Target:
    (tmp_path / "targets.toml").write_text(text, encoding="utf-8")
    return target.read(str(tmp_path / "targets.toml"), name, given)


def test_a_table_and_the_command_line_in_its_place(tmp_path):
    text = '[a]\nproject = "p-1"\nzone = "us-west4-a"\n[b]\nproject = "p-2"\n'
    assert read(tmp_path, text, "a", zone="us-east5-b", bucket=None) == target.Target("a", "p-1", "us-east5-b")
    assert read(tmp_path, text).project == ""  # two tables and no name
    assert read(tmp_path, '\ufeff[only]\nproject = "p-1"').name == "only"  # as some editors save it
    assert target.read("nosuch.toml", "", {"project": "p-1"}) == target.Target(project="p-1")


def test_the_table_of_the_repository_can_be_read():
    for name in ("tpu", "gke", "slurm", "sky"):
        assert target.read(str(ROOT / target.FILE), name, {}).name == name


def test_a_command_is_printed_as_it_would_be_typed():
    words = ["train", "--gin.MODEL_DIR='out/run'", "--name=a b", "x$y", "--gin.A='$x'"]
    line = """flanx train --gin.MODEL_DIR="'out/run'" --name='a b' 'x$y' --gin.A=''"'"'$x'"'"''"""
    assert job.typed(words) == line and shlex.split(line) == ["flanx", *words]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[a]\napi_token = "x"', "'api_token' looks like a secret"),
        ('[a]\nproject = "hf_ABCDEFGHIJKLMNOPQRSTUVWX"', "'project' looks like a secret"),
        ('[a]\nclster = "c"', "no key 'clster'; did you mean 'cluster'"),
        ('[a]\nzone = "here; rm -rf /"', "is not a valid zone"),
        ('[a]\nbucket = "my-bucket"', "is not a valid bucket"),
        ('[a]\nproject = "$(id)"', "is not a valid project"),
        ('[a]\nimage = "a b"', "is not a valid image"),
        ("[a]\nquota = true", "give chips"),
        ("[a]\nzone = 5", "is not a valid zone"),
        ("zone", "not TOML"),
        ("zone = 5", "in no table"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path, text, "a" if text.startswith("[a]") else "")
    assert "hf_ABC" not in str(refused.value)


def test_a_target_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no target 'gkee'.*did you mean 'gke'"):
        read(tmp_path, "[gke]\n[tpu]\n", "gkee")
    with pytest.raises(UserError, match="no zone and no bucket: set zone, bucket in"):
        target.Target(project="p").require("project", "zone", "bucket")


def test_variables_that_are_no_secrets():
    assert job.check_environment(["A=b=c", "TOKENIZERS_PARALLELISM=false"]) == {
        "A": "b=c",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for pair in ("HF_TOKEN=x", "WANDB_API_KEY=x", "AWS_SECRET_ACCESS_KEY=x", "A=hf_ABCDEFGHIJKLMNOPQRSTUVWX"):
        with pytest.raises(UserError, match="looks like a secret") as refused:
            job.check_environment([pair])
        assert "hf_ABC" not in str(refused.value)
    for pair in ("A", "1A=x", "A=x\ny"):
        with pytest.raises(UserError, match="write NAME=VALUE"):
            job.check_environment([pair])


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a" * 41, "a;b", "é"])
def test_names_that_a_service_refuses(name):
    with pytest.raises(UserError, match="lower-case letters, digits and hyphens"):
        job.check_name(name)
