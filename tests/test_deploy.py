"""The files of deploy/ are what their services take, and act on each exit code as birdtune means it."""

import copy
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import deploy_schemas
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.model import Shape
from botocore.validate import ParamValidator

from birdtune import cli, errors
from birdtune.config import options
from birdtune.runtime import configure

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"

# Exit code → whether another attempt may help.
RETRY = {
    errors.EXIT_DEFECT: False, errors.EXIT_USAGE: False, errors.EXIT_INPUT: False, errors.EXIT_RETRY: True,
    errors.Interrupted(signal.SIGTERM).exit_code: True,
}  # fmt: skip
OUT_OF_MEMORY = 137  # killed: the same would happen again
FILES = sorted(path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file())
PLACEHOLDERS = "BUCKET", "REGISTRY", "ACCOUNT", "REGION", "PROJECT", "SUBNET", "SECURITY_GROUP"


def text(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def read(name: str) -> Any:
    return json.loads(text(name)) if name.endswith(".json") else yaml.safe_load(text(name))


def test_the_release_workflow_is_one_and_has_no_known_weakness() -> None:
    path = ROOT / ".github/workflows/release.yml"
    found = yaml.safe_load(path.read_text("utf-8"))
    found["on"] = found.pop(True)  # what YAML 1.1 makes of the word
    jsonschema.validate(found, deploy_schemas.published("github-workflows"))
    audit = [Path(sys.executable).with_name("zizmor"), "--offline", "--pedantic", "--format", "plain", path]
    done = subprocess.run(audit, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- each file is understood --------------------------------------------------------------------


@cache
def request_shape(service: str, operation: str) -> Shape:
    """What an operation of AWS takes, by the definitions that AWS's own clients are made from."""
    return botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape


def wrong_values(shape: Shape, value: Any) -> list[str]:
    """Values that are none of those listed, which botocore leaves to the service to refuse."""
    if isinstance(value, dict) and shape.type_name == "structure":
        return [fault for key, item in value.items() for fault in wrong_values(shape.members[key], item)]
    if isinstance(value, list):
        return [fault for item in value for fault in wrong_values(shape.member, item)]
    return [value] if getattr(shape, "enum", None) and value not in shape.enum else []


def check_request(service: str, operation: str, request: dict[str, Any]) -> None:
    shape = request_shape(service, operation)
    found = ParamValidator().validate(request, shape)
    assert not found.has_errors(), found.generate_report()
    assert wrong_values(shape, request) == []


AWS = {
    "aws-batch/launch-template.json": ("ec2", "CreateLaunchTemplate"),
    "aws-batch/compute-environment.json": ("batch", "CreateComputeEnvironment"),
    "aws-batch/job-queue.json": ("batch", "CreateJobQueue"),
    "aws-batch/job-definition.json": ("batch", "RegisterJobDefinition"),
    "aws-batch/schedule.json": ("scheduler", "CreateSchedule"),
    "sagemaker/training-job.json": ("sagemaker", "CreateTrainingJob"),
}


@pytest.mark.parametrize("name", AWS)
def test_aws_takes_the_request(name: str) -> None:
    check_request(*AWS[name], read(name))


def test_the_checks_of_requests_see_unknown_missing_and_wrong_values() -> None:
    good = read("sagemaker/training-job.json")
    for change in ({"TrainingJob": "x"}, {"RoleArn": 1}):
        with pytest.raises(AssertionError):
            check_request("sagemaker", "CreateTrainingJob", good | change)
    wrong = copy.deepcopy(good)
    wrong["ResourceConfig"]["InstanceType"] = "ml.g5.2xlage"
    with pytest.raises(AssertionError):
        check_request("sagemaker", "CreateTrainingJob", wrong)


def test_the_schedule_of_batch_submits_the_job_that_is_defined() -> None:
    job = json.loads(read("aws-batch/schedule.json")["Target"]["Input"])
    # EventBridge Scheduler spells every parameter with a capital letter, Batch with a small one.
    job = {key[0].lower() + key[1:]: value for key, value in job.items()}
    check_request("batch", "SubmitJob", job)
    assert job["jobDefinition"] == read("aws-batch/job-definition.json")["jobDefinitionName"]
    assert job["jobQueue"] == read("aws-batch/job-queue.json")["jobQueueName"]
    environments = read("aws-batch/job-queue.json")["computeEnvironmentOrder"]
    own = read("aws-batch/compute-environment.json")
    assert [item["computeEnvironment"] for item in environments] == [own["computeEnvironmentName"]]
    template = own["computeResources"]["launchTemplate"]["launchTemplateName"]
    assert template == read("aws-batch/launch-template.json")["LaunchTemplateName"]


def test_the_schedule_of_sagemaker_takes_the_training_job_as_its_input() -> None:
    schedule = read("sagemaker/schedule.json")
    schedule["Target"]["Input"] = text("sagemaker/training-job.json")  # as docs/deploy-sagemaker.md says
    check_request("scheduler", "CreateSchedule", schedule)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("aws/")])
def test_a_policy_names_what_it_allows(name: str) -> None:
    policy = read(name)
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        subject = "Principal" if "trust" in name else "Resource"
        assert set(statement) == {"Effect", "Action", subject}


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", ["kubernetes/job.yaml", "kubernetes/cronjob.yaml"])
def test_kubernetes_takes_the_manifest(name: str, version: str) -> None:
    kubernetes_validate.validate(read(name), version, strict=True)


def test_the_cron_job_is_the_job_every_month_and_never_two_at_a_time() -> None:
    spec = read("kubernetes/cronjob.yaml")["spec"]
    assert spec["jobTemplate"]["spec"] == read("kubernetes/job.yaml")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"


SCHEMAS = (
    ("skypilot/birdtune.yaml", deploy_schemas.SKYPILOT_TASK),
    ("vertex/custom-job.json", deploy_schemas.VERTEX_CUSTOM_JOB),
)


@pytest.mark.parametrize(("name", "schema"), SCHEMAS)
def test_skypilot_and_vertex_take_the_file(name: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(read(name), schema)


def test_compose_takes_the_file_and_asks_for_a_gpu() -> None:
    jsonschema.validate(read("compose/compose.yaml"), deploy_schemas.published("compose-spec"))
    service = read("compose/compose.yaml")["services"]["birdtune"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert (DEPLOY / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    # Compose cannot tell a retry from a fault.
    assert service["restart"] == "no"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    for name in ("birdtune.service", "birdtune.timer"):
        # Docker may lie elsewhere here, or nowhere.
        (tmp_path / name).write_text(text(f"systemd/{name}").replace("/usr/bin/docker", sys.executable))
    (tmp_path / "docker.service").write_text(f"[Service]\nExecStart={sys.executable}\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "birdtune.service", tmp_path / "birdtune.timer"],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# ---- exit codes ---------------------------------------------------------------------------------


def batch_retries(rules: list[dict[str, str]], code: int | None, status: str = "Essential container exited") -> bool:
    """What AWS Batch does after an attempt: the first rule all of whose conditions match; without one, a retry."""
    found = {"onExitCode": "" if code is None else str(code), "onStatusReason": status, "onReason": "any"}
    for rule in rules:
        conditions = {key: pattern for key, pattern in rule.items() if key != "action"}
        if all(fnmatch.fnmatchcase(found[key], pattern) for key, pattern in conditions.items()):
            return rule["action"] == "RETRY"
    return True


def test_batch_retries_what_may_pass() -> None:
    rules = read("aws-batch/job-definition.json")["retryStrategy"]["evaluateOnExit"]
    assert len(rules) <= 5  # the most that Batch takes
    codes = RETRY | {OUT_OF_MEMORY: False}
    assert {code: batch_retries(rules, code) for code in codes} == codes
    assert batch_retries(rules, None, "Host EC2 (instance i-0123456789abcdef0) terminated.")
    assert {rule["onExitCode"] for rule in rules if "onExitCode" in rule} == {
        str(code) for code, retry in RETRY.items() if retry or code == errors.EXIT_INPUT
    }


@pytest.mark.parametrize("left_out", [1, 2, 3, 4])  # that 42 ends the job would follow from the last rule, too
def test_each_rule_of_batch_is_needed(left_out: int) -> None:
    rules = read("aws-batch/job-definition.json")["retryStrategy"]["evaluateOnExit"]
    fewer = rules[:left_out] + rules[left_out + 1 :]
    cases = [(code, "any") for code in (*RETRY, OUT_OF_MEMORY)] + [(None, "Host EC2 (instance i-0) terminated.")]
    assert any(batch_retries(fewer, *case) != batch_retries(rules, *case) for case in cases)


def pod_action(rules: list[dict[str, Any]], code: int, *, disrupted: bool = False) -> str:
    """What Kubernetes does after a pod failed: the first rule that matches; without one, it counts as an attempt."""
    for rule in rules:
        conditions = {condition["type"] for condition in rule.get("onPodConditions", [])}
        if (disrupted and "DisruptionTarget" in conditions) or code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"


def test_kubernetes_retries_what_may_pass_and_does_not_count_a_lost_node() -> None:
    spec = read("kubernetes/job.yaml")["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    codes = RETRY | {OUT_OF_MEMORY: False}
    assert {code: pod_action(rules, code) for code in codes} == {
        code: "Count" if retry else "FailJob" for code, retry in codes.items()
    }
    stopped = errors.Interrupted(signal.SIGTERM).exit_code
    assert pod_action(rules, stopped, disrupted=True) == pod_action(rules, OUT_OF_MEMORY, disrupted=True) == "Ignore"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a failure policy asks for it
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {
        container["name"] for container in pod["containers"]
    }


def test_what_a_pod_writes_has_a_limit_that_it_asked_the_node_for() -> None:
    pod = read("kubernetes/job.yaml")["spec"]["template"]["spec"]
    asked = {kind: rows["ephemeral-storage"] for kind, rows in pod["containers"][0]["resources"].items()}
    sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]]
    assert asked["requests"] == asked["limits"] and asked["limits"].endswith("Gi")
    assert sum(int(size.removesuffix("Gi")) for size in sizes) < int(asked["limits"].removesuffix("Gi"))


def test_skypilot_and_systemd_retry_what_may_pass() -> None:
    passing = {code for code, retry in RETRY.items() if retry}
    recovery = read("skypilot/birdtune.yaml")["resources"]["job_recovery"]
    assert set(recovery["recover_on_exit_codes"]) == passing
    line = re.search(r"^RestartForceExitStatus=(.*)$", text("systemd/birdtune.service"), re.M)
    assert line and {int(code) for code in line[1].split()} == passing


# ---- settings -----------------------------------------------------------------------------------


def after_image(script: str) -> list[str]:
    """What a docker command of a script hands to the image."""
    return shlex.split(re.split(r"birdtune:gpu", script.replace("\\\n", " "))[1].splitlines()[0])


def vertex_shell(model: str = "model/") -> "subprocess.CompletedProcess[str]":
    """Vertex's container, with the variables that Vertex sets, which prints what it hands to birdtune."""
    spec = read("vertex/custom-job.json")["jobSpec"]
    container = spec["workerPoolSpecs"][0]["containerSpec"]
    base = spec["baseOutputDirectory"]["outputUriPrefix"]
    places = {"AIP_MODEL_DIR": f"{base}/{model}", "AIP_CHECKPOINT_DIR": f"{base}/checkpoints/"}
    script = container["args"][0].replace("/model/entrypoint.sh", "printf '%s\\n'").replace("exec ", "")
    return subprocess.run([*container["command"], script], env=places, capture_output=True, text=True, check=False)


def in_vertex() -> list[str]:
    return vertex_shell().stdout.split()


def test_vertex_refuses_places_that_are_not_in_one_folder_and_says_so() -> None:
    done = vertex_shell("models/")
    assert (done.returncode, done.stdout) == (errors.EXIT_INPUT, "")
    assert "AIP_MODEL_DIR is gs://BUCKET/birdtune/output/models/, AIP_CHECKPOINT_DIR is gs://BUCKET/" in done.stderr


COMMANDS = {
    "aws-batch": lambda: read("aws-batch/job-definition.json")["containerProperties"]["command"],
    "kubernetes": lambda: read("kubernetes/job.yaml")["spec"]["template"]["spec"]["containers"][0]["args"],
    "skypilot": lambda: after_image(read("skypilot/birdtune.yaml")["run"]),
    "compose": lambda: read("compose/compose.yaml")["services"]["birdtune"]["command"],
    "systemd": lambda: after_image(text("systemd/birdtune.service")),
    "vertex": in_vertex,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_is_understood_and_promotes_only_what_is_better(name: str) -> None:
    command, *arguments = COMMANDS[name]()
    given = cli.parse(command, arguments)[1]  # raises UsageError for what it does not know
    gate = configure.load(given, {}, job_yaml=False).gate
    assert (gate.champion, gate.margin) == ("latest", 0.02)


def test_vertex_writes_where_it_looks_for_models_and_checkpoints() -> None:
    # AIP_MODEL_DIR and AIP_CHECKPOINT_DIR are model/ and checkpoints/ below one folder: so is an output folder.
    assert in_vertex()[:3] == ["run", "--output", "/gcs/BUCKET/birdtune/output"]


def test_the_hyperparameters_of_sagemaker_are_settings() -> None:
    parameters = read("sagemaker/training-job.json")["HyperParameters"]
    gate = configure.load(parameters, {}, job_yaml=False).gate
    assert (gate.champion, gate.margin) == ("latest", 0.02)


@pytest.mark.parametrize("name", FILES)
def test_each_variable_is_a_setting(name: str) -> None:
    known = {option.variable for option in options()}
    assert set(re.findall(r"BIRDTUNE_\w+", text(name))) <= known


# ---- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_page_says_what_to_do_with_the_file_and_its_placeholders(name: str) -> None:
    folder = name.split("/")[0]
    page = (ROOT / "docs" / f"deploy{'' if folder == 'aws' else f'-{folder}'}.md").read_text("utf-8")
    common = (ROOT / "docs/deploy.md").read_text("utf-8")
    assert f"deploy/{name}" in page
    found = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)?\b", text(name))) & set(PLACEHOLDERS)
    assert all(placeholder in page + common for placeholder in found)


def test_the_commands_that_fill_in_names_leave_none_and_files_that_services_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    pages = [page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("deploy*.md"))]
    for line in re.findall(r"^ *(sed -i .*)$", "\n".join(pages), re.M):
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    monkeypatch.setitem(globals(), "DEPLOY", tmp_path / "deploy")
    for name in FILES:
        assert re.findall(rf"(?<![A-Za-z_])(?:{'|'.join(PLACEHOLDERS)})(?![A-Za-z_])", text(name)) == [], name
        assert set(re.findall(r"arn:aws:iam::(\w*)", text(name))) <= {"123456789012"}, name
    for name in AWS:
        test_aws_takes_the_request(name)
    for name, schema in SCHEMAS:
        test_skypilot_and_vertex_take_the_file(name, schema)
    for name in ("kubernetes/job.yaml", "kubernetes/cronjob.yaml"):
        test_kubernetes_takes_the_manifest(name, "1.31")
    test_the_schedule_of_batch_submits_the_job_that_is_defined()
    test_the_schedule_of_sagemaker_takes_the_training_job_as_its_input()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("deploy*.md")), ids=lambda page: page.name)
def test_each_file_that_a_page_names_is_there(page: Path) -> None:
    for name in re.findall(r"\bdeploy/([\w./-]+\w)", page.read_text("utf-8")):
        assert (DEPLOY / name).exists(), name


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        ("promoted", 0, "version 3 is in service\n"), ("not-promoted", 0, "kept back: worse\n"),
        ("unchanged", 0, ""), ("failed", 75, ""),
    ],
)  # fmt: skip
def test_the_script_of_the_page_tells_outcomes_apart(tmp_path: Path, outcome: str, code: int, said: str) -> None:
    if not shutil.which("jq"):
        pytest.skip("jq is not installed")
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    script = next(block for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "outcome" in block)
    record = json.dumps({"outcome": outcome, "version": 3, "gate": {"reason": "worse"}})
    job = tmp_path / "entrypoint.sh"
    job.write_text(f"#!/bin/sh\nmkdir output && echo '{record}' >output/run.json\nexit {code}\n")
    job.chmod(0o755)
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said)
