"""What one sandbox gets: the operator's configuration, what its project asks for in `.rave.yml`, and its labels.

The operator's limits always win, and `remarks` say when they did.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from ravebot.config.model import Config, HttpTest, RunTest
from ravebot.config.repository import FILE_NAME, ProjectFile, StartOnLabel
from ravebot.sandboxes.model import Machine, MergeRequest, Sandbox
from ravebot.sandboxes.pipelineimages import NOT_ASKED_YET, ImageState, ImageWish, PipelineImage, asked_for
from ravebot.sandboxes.view import in_bytes, in_words
from ravebot.store import images, merge_requests, pipeline_images, project_files
from ravebot.store.database import Transaction
from ravebot.store.project_files import BRANCH, ProjectFileRow

_FILE = f"`{FILE_NAME}`"
_USUAL_WAIT = timedelta(minutes=20)


@dataclass(frozen=True)
class SandboxSettings:
    """`memory` and `disk` are bytes; `start` is always, ready, command or a label; `agent` is empty for none.

    `remarks`: in words, what the project asked for and did not get. `troubles`: what is wrong in its file, which then
    does not count. `image_wish`: an image of a pipeline that it wants; `image_waits`: why that is not there yet, and
    `image_failed`: why it never will be, so that the sandbox can't start. `image_held`: the key of the pipeline's image
    from which no machine came up.
    """

    memory: int
    vcpus: int
    disk: int
    lifetime: timedelta
    image: Path
    setup: tuple[str, ...]
    smoke_tests: tuple[HttpTest | RunTest, ...]
    start: str | StartOnLabel
    links: tuple[tuple[str, str], ...] = ()
    junit: tuple[str, ...] = ()
    agent: str = ""
    remarks: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    image_wish: ImageWish | None = None
    image_waits: str = ""
    image_failed: str = ""
    image_held: str = ""

    def differs_from(self, machine: Machine) -> bool:
        """Whether a new machine would be another one than this."""
        sizes = machine.vcpus and (machine.memory_bytes, machine.disk_bytes, machine.vcpus)
        return bool(sizes) and (sizes, machine.image) != ((self.memory, self.disk, self.vcpus), self.image_key)

    @property
    def image_key(self) -> str:
        """As failed builds are counted by image."""
        return str(self.image)


def resolve(config: Config, file: ProjectFile | None, labels: tuple[str, ...] = ()) -> SandboxSettings:
    """What a sandbox gets; `file`: None without a file, or if that can't be used."""
    asked = file or ProjectFile()
    remarks: list[str] = []
    large = config.gitlab.labels.large in labels
    sizes = {
        "memory": _size("memory", config.sandbox.memory, config.limits.memory, asked.memory, large, remarks),
        "disk": _size("disk", config.sandbox.disk, config.limits.disk, asked.disk, large, remarks),
    }
    return SandboxSettings(
        memory=sizes["memory"],
        vcpus=_vcpus(config, asked, large, remarks),
        disk=sizes["disk"],
        lifetime=_lifetime(config, asked, remarks),
        image=_image(config, asked, remarks),
        setup=config.sandbox.setup if asked.setup is None else asked.setup,
        smoke_tests=config.sandbox.smoke_tests if asked.smoke_tests is None else asked.smoke_tests,
        start=asked.start or ("ready" if config.gitlab.drafts == "wait" else "always"),
        links=tuple((link.name, link.path) for link in asked.links),
        junit=config.sandbox.junit if asked.results.junit is None else asked.results.junit,
        agent=_agent(config, asked, remarks),
        image_wish=_image_wish(config, asked, remarks),
        remarks=tuple(remarks),
    )


def of_sandbox(tx: Transaction, config: Config, sandbox: Sandbox) -> SandboxSettings:
    """What that sandbox gets, by the file at its commit: a fork's commit is only there once it was approved."""
    mr = merge_requests.get(tx, sandbox.mr)
    found = _stored(config, project_files.get(tx, sandbox.mr.project_id, sandbox.sha), mr.labels if mr else ())
    if found.image_wish is None:
        return found
    image = pipeline_images.get(tx, sandbox.mr, sandbox.sha)
    if image is not None and image.image and not from_pipeline(config, image.image):
        image = None  # it is in a folder that was configured before: the loop forgets it, and makes it anew
    if image is not None:
        image = asked_for(image, sandbox.created_at, tx.now)  # what an earlier sandbox was told is not this one's
    return _with_image(tx, config, found, found.image_wish, image)


def from_pipeline(config: Config, image: str) -> bool:
    """Whether a machine's image was built by a pipeline."""
    kept = config.provider.pipeline_images
    return kept is not None and Path(image).parent == config.pipeline_images


def _with_image(
    tx: Transaction, config: Config, found: SandboxSettings, wish: ImageWish, image: PipelineImage | None
) -> SandboxSettings:
    """With the image that the commit's pipeline built, if there is one; otherwise what follows from that."""
    why = held = ""
    if image is not None and image.state is ImageState.READY:
        record, most = images.get(tx, image.image), max(config.sandbox.disk, config.limits.disk)
        if image.virtual_bytes > most:  # the operator allowed more when it was made
            why = (
                f"the image that the job {image.job_name} built has a disk of {_in_bytes(image.virtual_bytes)}, and "
                f"may have {_in_bytes(most)}: make it smaller, or have an operator raise limits.disk, and then retry"
            )
        elif record.held:
            held = image.image
            why = f"no machine comes up from the image that the job {image.job_name} built: {record.told}"
        else:
            return replace(found, image=Path(image.image), disk=max(found.disk, image.virtual_bytes))
    elif image is not None and image.state is ImageState.FAILED:
        why = image.words
    if not why:
        return replace(found, image_waits=image.waits_for if image else NOT_ASKED_YET)
    if wish.may_fall_back:
        return replace(found, remarks=(*found.remarks, f"the default image is used: {why}"), image_held=held)
    return replace(found, image_failed=why, image_held=held)


def of_merge_request(tx: Transaction, config: Config, mr: MergeRequest) -> SandboxSettings:
    """What a sandbox of its head would get."""
    return _stored(config, project_files.get(tx, mr.ref.project_id, file_at(mr)), mr.labels)


def file_at(mr: MergeRequest) -> str:
    """Where the file is that counts: at the head; of a fork that nobody let in, at the branch that it is meant for."""
    if mr.from_fork and mr.approved_sha != mr.head_sha:
        return f"{BRANCH}{mr.target_branch}"
    return mr.head_sha


def _stored(config: Config, row: ProjectFileRow | None, labels: tuple[str, ...]) -> SandboxSettings:
    settings = resolve(config, _parsed(row.content) if row else None, labels)
    if row is None or not row.problems:
        return settings
    troubles = []
    for one in row.problems:
        where = f"line {one.line}, column {one.column}: " if one.line else ""
        troubles.append(f"{where}{one.text}")
    return replace(settings, troubles=tuple(troubles))


@lru_cache(maxsize=256)
def _parsed(content: str) -> ProjectFile | None:
    """None where there is no file; also for one that an earlier version took, and this one does not."""
    try:
        return ProjectFile.model_validate_json(content) if content else None
    except ValidationError:
        return None


def _size(what: str, given: int, limit: int, asked: int | None, large: bool, remarks: list[str]) -> int:
    """What is too small does not boot, and would make the image look broken to everybody."""
    most = max(given, limit)
    if large:
        return most
    if asked is None:
        return given
    if asked > most:
        remarks.append(f"{_FILE} asks for {_in_bytes(asked)} of {what}; it gets {_in_bytes(most)}, the most here")
        return most
    if asked < given:
        remarks.append(f"{_FILE} asks for {_in_bytes(asked)} of {what}; it gets {_in_bytes(given)}, the least here")
        return given
    return asked


def _in_bytes(count: int) -> str:
    """As people write it: not `8.0 GiB`."""
    return in_bytes(count).replace(".0 ", " ")


def _vcpus(config: Config, asked: ProjectFile, large: bool, remarks: list[str]) -> int:
    most = max(config.sandbox.vcpus, config.limits.vcpus)
    if large:
        return most
    if asked.vcpus is not None and asked.vcpus > most:
        remarks.append(f"{_FILE} asks for {asked.vcpus} vcpus; it gets {most}, the most here")
    least = config.sandbox.vcpus  # with fewer, an image may boot too late, and look broken to everybody
    if asked.vcpus is not None and asked.vcpus < least:
        remarks.append(f"{_FILE} asks for {asked.vcpus} vcpus; it gets {least}, the least here")
    return max(least, min(asked.vcpus or least, most))


def _lifetime(config: Config, asked: ProjectFile, remarks: list[str]) -> timedelta:
    most = min(max(config.pool.lifetime, config.limits.lifetime), config.pool.max_lifetime)
    if asked.lifetime is not None and asked.lifetime > most:
        remarks.append(
            f"{_FILE} asks for a lifetime of {in_words(asked.lifetime)}; it gets {in_words(most)}, the longest here"
        )
    return min(asked.lifetime or config.pool.lifetime, most)


def _image(config: Config, asked: ProjectFile, remarks: list[str]) -> Path:
    images = config.provider.images
    if asked.image is None:
        return config.provider.image
    if asked.image in images:
        return images[asked.image]
    remarks.append(f"{_FILE} asks for the image {asked.image}, which is not here{_meant(asked.image, list(images))}")
    return config.provider.image


def _image_wish(config: Config, asked: ProjectFile, remarks: list[str]) -> ImageWish | None:
    kept, job = config.provider.pipeline_images, asked.image_job
    if job is None:
        return None
    if kept is None:
        remarks.append(f"{_FILE} wants an image from a pipeline, which ravebot's operator has not switched on")
        return None
    wait = asked.wait_for_image or _USUAL_WAIT
    if wait > kept.longest_wait and asked.wait_for_image:
        remarks.append(
            f"{_FILE} waits {in_words(wait)} for its image; it gets {in_words(kept.longest_wait)}, the longest here"
        )
    return ImageWish(job.job, job.path, job.otherwise == "default", min(wait, kept.longest_wait))


def _agent(config: Config, asked: ProjectFile, remarks: list[str]) -> str:
    names = [agent.name for agent in config.agents if agent.can_be_spoken_to]
    if asked.agent is None or asked.agent in names:
        return asked.agent or ""
    remarks.append(f"{_FILE} names the agent {asked.agent}, which is not here{_meant(asked.agent, names)}")
    return ""


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; here are {', '.join(sorted(known)[:10])}" if known else ""
