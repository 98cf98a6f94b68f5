"""What services take, as JSON schemas: Compose's and GitHub's own, and of SkyPilot and Vertex AI what deploy/ uses.

The latter two have no package that is light enough to test with. Taken down from the task schema of SkyPilot 0.14.1
and from Google's discovery document of aiplatform v1 of November 2026.
"""

import json
from importlib import resources
from typing import Any

TEXT, WHOLE, YES_NO = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def published(name: str) -> dict[str, Any]:
    """A schema that check-jsonschema ships. Its own command takes seconds to start."""
    folder = resources.files("check_jsonschema") / "builtin_schemas/vendor"
    schema: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return schema


def exactly(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


EXIT_CODE = {"type": "integer", "minimum": 0, "maximum": 255}

SKYPILOT_TASK = exactly(
    name=TEXT,
    resources=exactly(
        accelerators={"type": "object", "maxProperties": 1, "additionalProperties": WHOLE},
        memory=TEXT,
        disk_size=WHOLE,
        use_spot=YES_NO,
        job_recovery=exactly(
            strategy=TEXT, max_restarts_on_errors=WHOLE, recover_on_exit_codes=many(EXIT_CODE) | {"uniqueItems": True}
        ),
    ),
    envs={"type": "object", "additionalProperties": TEXT},
    setup=TEXT,
    run=TEXT,
)

VERTEX_CUSTOM_JOB = exactly(
    displayName=TEXT,
    jobSpec=exactly(
        workerPoolSpecs=many(
            exactly(
                replicaCount={"type": "string", "pattern": "^[0-9]+$"},  # int64
                machineSpec=exactly(
                    machineType=TEXT,
                    acceleratorType={"enum": ["NVIDIA_TESLA_T4", "NVIDIA_L4", "NVIDIA_TESLA_A100", "NVIDIA_H100_80GB"]},
                    acceleratorCount=WHOLE,
                ),
                diskSpec=exactly(bootDiskType=TEXT, bootDiskSizeGb=WHOLE),
                containerSpec=exactly(
                    imageUri=TEXT, command=many(TEXT), args=many(TEXT), env=many(exactly(name=TEXT, value=TEXT))
                ),
            )
        ),
        scheduling=exactly(
            strategy={"enum": ["STANDARD", "SPOT", "FLEX_START"]},
            timeout={"type": "string", "pattern": "^[0-9]+s$"},
            restartJobOnWorkerRestart=YES_NO,
            disableRetries=YES_NO,
        ),
        serviceAccount=TEXT,
        baseOutputDirectory=exactly(outputUriPrefix={"type": "string", "pattern": "^gs://"}),
    ),
)
