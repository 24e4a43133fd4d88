"""What senders say of their files, and whether that may come: who, where to, and whether there is room."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from beamhub import access, folders, orders
from beamhub.access import Action, Principal
from beamhub.digests import algorithm_of
from beamhub.errors import BeamhubError, Conflict, Invalid, NotFound, QuotaExceeded, TooLarge, TooMany
from beamhub.incoming import busy
from beamhub.schemas import Digest, DigestAlgorithm, Upload, UploadState
from beamhub.store import Transaction

MAX_SIZE = 8 * 2**40  # bytes
OPEN = 1000  # uploads of one sender on their way at a time; an agent has some dozens
_DIGEST: TypeAdapter[str | None] = TypeAdapter(Digest | None)


@dataclass(frozen=True)
class Announced:
    """What a sender says of a file."""

    path: str
    size: int | None
    digest: str | None
    experiment: str | None
    concat: str | None = None
    source: str | None = None
    digest_follows: DigestAlgorithm | None = None
    computed: str | None = None  # its digest, where its bytes are known already
    metadata: str | None = None  # all that a tus client says of it

    def check(self) -> None:
        folders.parse(self.path, new=True)
        if self.size is not None and not 0 <= self.size <= MAX_SIZE:
            raise _too_long(self.size)
        _check_digest(self.digest)
        if self.digest_follows and (self.digest or self.concat):
            raise Invalid(
                f"{self.path} is announced with a digest that follows, and with one or as a part.",
                "Do one of these.",
            )

    def is_of(self, upload: Upload) -> bool:
        announced = upload.digest if upload.digest_by == "sender" and not upload.digest_follows else None
        return (self.size, self.digest, self.concat, self.source, self.digest_follows is None) == (
            # what was begun while it grew is still that
            self.size if self.size is None or upload.deferred else upload.size,
            announced,
            upload.concat,
            upload.source,
            upload.digest_follows is None,
        ) and self.experiment in (None, upload.experiment)

    def proposed(self, principal: Principal, id_: str, area: str, experiment: str) -> Upload:
        """The upload that would begin with it."""
        return Upload(
            id=id_,
            experiment=experiment,
            instrument=principal.instrument,
            path=f"{area}/{self.path}",
            size=self.size or 0,
            deferred=self.size is None,
            offset=0,
            digest=self.digest or self.computed,
            digest_follows=self.digest_follows,
            digest_by="sender" if self.digest or self.digest_follows else "service",
            version=1,
            state=UploadState.RECEIVING,
            source=self.source,
            concat=self.concat,
            metadata=self.metadata,
            created=datetime.now(UTC),
            ended=None,
            created_by=principal.name,
        )


def id_of(principal: Principal, key: str) -> str:
    """The id of the upload that this principal announces with this key, at every repetition."""
    return hashlib.sha256(f"{principal.kind}:{principal.name}\0{key}".encode()).hexdigest()[:32]


def begin(
    tx: Transaction, principal: Principal, file: Announced, upload: Upload, parts: Sequence[Upload]
) -> bool:
    """False when another request has begun it since this one looked, or it would go elsewhere now: to find a
    file, or put parts together, takes its time."""
    if tx.uploads.get(upload.id) is not None:
        return False
    if destination(tx, principal, file.experiment)[1] != upload.experiment:
        return False
    if parts and tx.uploads.forget([part.id for part in parts]) != len(parts):
        raise Conflict(f"A part of {upload.path} is no longer there.", "Send the file again.")
    _require_few(tx, principal)
    Quota.of(tx, upload.experiment).require(upload)
    tx.uploads.create(upload)
    return True


def begin_all(
    tx: Transaction, principal: Principal, experiment: str | None, new: Sequence[Upload]
) -> dict[str, BeamhubError]:
    """Begins uploads of one experiment; those that can't begin, and why, by their ids."""
    try:
        destination(tx, principal, experiment or new[0].experiment)
        _require_few(tx, principal)
    except BeamhubError as error:
        return {upload.id: error for upload in new}
    begun = tx.uploads.all([upload.id for upload in new])
    quota = Quota.of(tx, new[0].experiment)
    refused: dict[str, BeamhubError] = {}
    for upload in new:
        try:
            if upload.id in begun:
                raise busy(upload)
            quota.require(upload)
        except BeamhubError as error:
            refused[upload.id] = error
    if fresh := [upload for upload in new if upload.id not in refused]:
        tx.uploads.create(*fresh)
    return refused


def _require_few(tx: Transaction, principal: Principal) -> None:
    """Each upload that is on its way is a row, a file and a look at it now and then."""
    if tx.uploads.count_on_their_way(principal.name) >= OPEN:
        raise TooMany(
            f"{principal.name} has {OPEN} uploads on their way already.",
            "Send on or give up some of these; those that are not continued end after a day.",
        )


def expect(upload: Upload, offset: int) -> None:
    if offset != upload.offset:
        raise Conflict(
            f"The next byte of {upload.path} is {upload.offset}, not {offset}.",
            "Ask for the offset and go on from there.",
        )


def is_whole(upload: Upload, arrived: int) -> bool:
    """Whether so many bytes, and what is known of the file, are all that has to come."""
    awaits_digest = upload.digest_follows is not None and upload.digest is None
    return arrived == upload.size and not upload.deferred and not awaits_digest


def settled(tx: Transaction, upload: Upload, size: int | None, digest: str | None) -> Upload:
    """The upload with what its announcement has left open. What has been said once can't be changed."""
    change: dict[str, object] = {}
    if upload.deferred and size is not None:
        if size < upload.offset:
            raise Conflict(
                f"{upload.offset} bytes of {upload.path} have come; it can't have {size}.",
                "Give it up, and announce it again.",
            )
        if size > MAX_SIZE:
            raise _too_long(size)
        change |= {"size": size, "deferred": False}
    elif upload.deferred:
        change["size"] = upload.offset  # as it counts for the quota
    elif size not in (None, upload.size):
        raise Invalid(
            f"{upload.path} was announced with {upload.size} bytes, not {size}.", "Announce it again."
        )
    if digest is not None and digest != upload.digest:
        _check_digest(digest)
        if upload.digest is not None or algorithm_of(digest) != upload.digest_follows:
            raise Invalid(
                f"The announcement of {upload.path} does not fit to this digest of it.",
                "Announce it again.",
            )
        change["digest"] = digest
    if change:
        tx.uploads.change({upload.id: change})
        upload = upload.model_copy(update=change)
        Quota.of(tx, upload.experiment).require(upload, announced=True)
    return upload


@dataclass
class Quota:
    """All that has been announced to an experiment has to fit into its quota."""

    quota: int | None
    volume: int  # bytes of what has been

    @classmethod
    def of(cls, tx: Transaction, experiment: str) -> Quota:
        found = tx.experiments.get(experiment)
        quota = found.quota if found else None
        return cls(quota, tx.uploads.volume(experiment) if quota is not None else 0)

    @property
    def left(self) -> int:
        """How many bytes may still come."""
        return MAX_SIZE if self.quota is None else self.quota - self.volume

    def require(self, upload: Upload, *, announced: bool = False) -> None:
        """Raises QuotaExceeded unless this upload fits in too; it is counted already if it has been
        announced."""
        volume = self.volume if announced else self.volume + upload.size
        if self.quota is not None and volume > self.quota:
            raise QuotaExceeded(
                f"With {upload.path} ({upload.size} bytes) the uploads of {upload.experiment} come to "
                f"{volume} bytes; its quota is {self.quota}.",
                "Ask the staff of its instrument to raise the quota; then send on: what has arrived is kept.",
            )
        self.volume = volume


def destination(tx: Transaction, principal: Principal, experiment: str | None) -> tuple[str, str]:
    """The area and the experiment that a new file of this principal goes to."""
    if principal.instrument is None:
        if experiment is None:
            raise Invalid(
                "The experiment is missing.", "Say which experiment's shared/ folder the file is for."
            )
        access.require(tx, principal, experiment, Action.UPLOAD_SHARED)
        return folders.SHARED, experiment
    instrument = access.require_instrument(tx, principal, principal.instrument, Action.UPLOAD_RAW)
    active = instrument.active_experiment
    if active is None or experiment not in (None, active):
        raise Conflict(
            f"{experiment or 'No experiment'} is {'not ' if experiment else ''}active on {instrument.id}.",
            "Ask the staff of the instrument to make an experiment active on it.",
        )
    access.require(tx, principal, active, Action.UPLOAD_RAW)
    orders.require_running(instrument)
    return folders.RAW, active


def readable(tx: Transaction, principal: Principal, id_: str) -> Upload:
    upload = tx.uploads.get(id_)
    if upload is None:
        raise _unknown(id_)
    if principal.instrument is None:
        try:
            access.require(tx, principal, upload.experiment, Action.READ)
        except NotFound as error:
            raise _unknown(id_) from error
    elif upload.instrument != principal.instrument:
        raise _unknown(id_)
    return upload


def writable(tx: Transaction, principal: Principal, id_: str) -> Upload:
    """An upload goes on as it was begun: by the same sender, while that one may."""
    upload = readable(tx, principal, id_)
    if upload.created_by != principal.name:
        raise _unknown(id_)
    action = Action.UPLOAD_SHARED if principal.instrument is None else Action.UPLOAD_RAW
    access.require(tx, principal, upload.experiment, action)
    return upload


def continued(tx: Transaction, principal: Principal, id_: str) -> Upload:
    upload = writable(tx, principal, id_)
    if upload.state is UploadState.RECEIVING:
        Quota.of(tx, upload.experiment).require(upload, announced=True)  # it may have been lowered
    return upload


def _unknown(id_: str) -> NotFound:
    return NotFound(f"There is no upload {id_[:64]!r} of yours here.", "Announce the file again.")


def _too_long(size: int) -> BeamhubError:
    kind = TooLarge if size > MAX_SIZE else Invalid
    return kind(f"A file has 0 to {MAX_SIZE} bytes, not {size}.", "Check the announced length.")


def _check_digest(digest: str | None) -> None:
    try:
        _DIGEST.validate_python(digest)
    except ValidationError as error:
        raise Invalid(
            f"The digest {digest!r:.100} of the whole file is malformed.",
            "Send 64 hexadecimal digits of its sha256, or 32 of its xxh128.",
        ) from error
