"""What a job of the pipeline says of the image: which file of which job it is, and its digest."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ravebot.config.model import Config
from ravebot.sandboxes import pipelineimages
from ravebot.sandboxes.model import MergeRequest
from ravebot.sandboxes.pipelineimages import ImageState, ImageWish, PipelineImage
from ravebot.sandboxes.settings import of_merge_request
from ravebot.store import pipeline_images
from ravebot.store.database import Transaction
from ravebot.store.signals import IMAGES


@dataclass(frozen=True)
class AnnouncedImages:
    """Takes it down in the caller's transaction. Without any of it, what `.rave.yml` says is enough."""

    config: Config

    def announced(
        self, tx: Transaction, mr: MergeRequest, sha: str, pipeline_id: int, job: str, path: str, sha256: str
    ) -> str:
        """Take it down; empty texts mean what `.rave.yml` says. Returns why it can't be used, or an empty text.

        The caller has checked that the pipeline is that of the merge request's head, `sha`. Told twice, it is as told
        once; another file than before is looked for anew.
        """
        wish = of_merge_request(tx, self.config, mr).image_wish
        if wish is None:
            if self.config.provider.pipeline_images is None:
                return "this ravebot takes no images from pipelines: an operator can switch provider.pipeline_images on"
            if mr.from_fork and mr.approved_sha != mr.head_sha:
                return (
                    "nobody let this fork's commit in yet, so .rave.yml of the target branch counts, which has no "
                    "image_job: once a Developer did, the image is found without this"
                )
            return (
                ".rave.yml has no image_job at this commit, so the sandbox waits for no image: write `image_job: JOB`"
            )
        known = pipeline_images.get(tx, mr.ref, sha)
        told = (job, path, sha256)
        if known is not None and not any(told):  # the job that waits for the sandbox knows less than one that builds
            told = job, path, sha256 = known.told
        if known is None or known.told != told:
            bare = known or pipelineimages.wanted(mr.ref, sha, tx.now)
            fresh = replace(bare, announced_job=job, announced_path=path, announced_sha256=sha256, next_look_at=None)
            if _is_another(bare, fresh, wish):
                fresh = pipelineimages.anew(fresh, tx.now)
                if bare.state is not ImageState.READY:  # whose time goes on: nobody waits longer for telling more
                    fresh = replace(fresh, since=bare.since)
            pipeline_images.save(tx, replace(fresh, pipeline_id=pipeline_id))
        elif known.state is ImageState.WAITING:
            pipeline_images.save(tx, replace(known, next_look_at=None))
        tx.wake(IMAGES)
        return ""


def _is_another(before: PipelineImage, image: PipelineImage, wish: ImageWish) -> bool:
    """Whether another file is meant than the one that was found."""
    if image.state is ImageState.WAITING:
        return False
    meant = (image.announced_job or wish.job, image.announced_path or wish.path)
    digest = image.announced_sha256
    return (image.job_name, image.path) != meant or digest not in (before.announced_sha256, "", image.digest)
