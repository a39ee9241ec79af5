"""Images in other places: read and written there, whether that is a registry, an OCI layout, or a file somewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property

from cfstools.errors import Phrase, Remedy, UsageError, naming
from cfstools.lifetime import Closable
from cfstools.oci.content import Content
from cfstools.oci.descriptor import Platform
from cfstools.oci.images import OciImages
from cfstools.oci.pushed.source import NotPushed, PushedImage, read_pushed
from cfstools.oci.registry.reference import RegistryOptions, parse_image_reference
from cfstools.oci.registry.referrers import RegistrySink
from cfstools.oci.registry.remote import Registries
from cfstools.oci.registry.uploads import Uploader
from cfstools.oci.select import Selector
from cfstools.oci.sink import BlobSink, LayoutSink
from cfstools.sources.oci_containers import open_images
from cfstools.sources.oci_request import REGISTRY, Form, Reference, is_container, parse_reference
from cfstools.sources.offers import ContainerOffer, Offer, read_offer
from cfstools.sources.places import OBJECTS, make_directory, open_files, split_file, store_objects
from cfstools.store.place import is_remote
from cfstools.text import shown_path, without_secrets
from cfstools.transport.base import Place
from cfstools.transport.directory import DirectoryTarget
from cfstools.transport.fetch import ObjectSource
from cfstools.transport.open import DEFAULT_NETWORK, NetworkOptions
from cfstools.transport.reading import DEFAULT_RULES
from cfstools.transport.retry import RetryRules


class Elsewhere(Closable):
    """Opens images in other places; connections are kept until it is closed. *warn* is told what is odd about them.

    *scratch* is a directory for temporaries, for archives that can only be read in order. *network* says how places
    other than registries are spoken to, *rules* how long objects are asked of a place that fails.
    """

    def __init__(
        self,
        registries: RegistryOptions | None = None,
        *,
        network: NetworkOptions | None = None,
        scratch: bytes | None = None,
        rules: RetryRules = DEFAULT_RULES,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._options = registries or RegistryOptions()
        self._network = network or DEFAULT_NETWORK
        self._scratch = scratch
        self._rules = rules
        self.warn = warn

    @cached_property
    def registries(self) -> Registries:
        """The door to registries, made when it is needed."""
        return Registries(self._options, warn=self.warn)

    def close(self) -> None:
        """Close all connections."""
        if "registries" in self.__dict__:
            self.registries.close()

    @contextmanager
    def offer(self, place: bytes, platform: Platform | None = None, mirrors: Sequence[bytes] = ()) -> Iterator[Offer]:
        """The image at *place*: one that was pushed to a registry or layout, or a file, at a path or URL.

        *mirrors* are stores that have its objects: asked before its layers, and instead of ``objects`` beside a file.
        Raises as :meth:`pushed` does.
        """
        with ExitStack() as stack:
            stores: list[ObjectSource] = []
            for mirror in mirrors:
                with naming(without_secrets(shown_path(mirror))):
                    stores.append(
                        store_objects(stack.enter_context(open_files(mirror, self._network)), rules=self._rules)
                    )
            if is_container(place):
                content, pushed = stack.enter_context(self.pushed(place, platform))
                yield ContainerOffer(content, pushed, shown_path(place), stores, self.warn, rules=self._rules)
                return
            base, name = split_file(place)
            files = stack.enter_context(open_files(base, self._network))
            if not mirrors:
                stores += self._beside(base, files, stack)
            yield read_offer(files, name, stores, self.warn)

    @contextmanager
    def objects(
        self,
        places: Sequence[bytes],
        sizes: Mapping[bytes, int],
        *,
        image: bytes | None = None,
        platform: Platform | None = None,
    ) -> Iterator[Sequence[ObjectSource]]:
        """Where objects, *sizes* by digest, can be fetched from: *places* in their order, then that of *image*.

        Places are stores and pushed images. *image* is one, or the file of an image with its objects beside it, which
        is not read. Raises as :meth:`pushed` does.
        """
        with ExitStack() as stack:
            found: list[ObjectSource] = []
            for place in places:
                with naming(without_secrets(shown_path(place))):
                    if is_container(place):
                        found += self._layers(place, platform, sizes, stack)
                    else:
                        found.append(
                            store_objects(stack.enter_context(open_files(place, self._network)), rules=self._rules)
                        )
            if image is not None and is_container(image):
                found += self._layers(image, platform, sizes, stack)
            elif image is not None:
                base, _ = split_file(image)
                found += self._beside(base, stack.enter_context(open_files(base, self._network)), stack)
            yield found

    def _layers(
        self, place: bytes, platform: Platform | None, sizes: Mapping[bytes, int], stack: ExitStack
    ) -> Sequence[ObjectSource]:
        content, pushed = stack.enter_context(self.pushed(place, platform))
        return ContainerOffer(content, pushed, shown_path(place), (), self.warn, rules=self._rules).sources(sizes)

    def _beside(self, base: bytes, files: Place, stack: ExitStack) -> Iterator[ObjectSource]:
        """The store beside an image, unless it is a directory that is not there."""
        if is_remote(base):
            yield store_objects(files, OBJECTS, rules=self._rules)
        elif os.path.isdir(directory := os.path.join(base, os.fsencode(OBJECTS))):
            yield store_objects(stack.enter_context(open_files(directory, self._network)), rules=self._rules)

    @contextmanager
    def pushed(
        self, place: bytes, platform: Platform | None = None, *, mirrors: bool = True
    ) -> Iterator[tuple[Content, PushedImage]]:
        """The pushed image at *place*, and the content that its blobs are in.

        Without *mirrors* it is there, not only in one of them.
        Raises ``UsageError`` for what is no place of images, ``NotPushed`` for another image, ``NetworkError``, …
        """
        with self._images(place, mirrors=mirrors) as (images, selector), naming(place):
            try:
                image = read_pushed(images.content, images.image(selector._replace(platform=platform)))
            except NotPushed as error:
                error.hint = error.hint or Phrase("{} makes an image of it", Remedy.BUILD)
                raise
            yield images.content, image

    @contextmanager
    def _images(self, place: bytes, *, mirrors: bool = True) -> Iterator[tuple[OciImages, Selector]]:
        if place.startswith(REGISTRY):
            reference = parse_image_reference(os.fsdecode(place))
            yield OciImages(self.registries.content(reference, mirrors=mirrors), "docker"), Selector()
            return
        found = _reference(place)
        with open_images(found.form, [found.path], scratch=self._scratch) as container:
            if not isinstance(container, OciImages):
                raise NotPushed("was not pushed by mkcfs")
            yield container, Selector(name=found.name, digest=found.digest)

    @contextmanager
    def sink(self, place: bytes, *, mount_from: str | None = None, chunk: int | None = None) -> Iterator[BlobSink]:
        """Where to push an image to. Raises as :meth:`pushed` does."""
        if place.startswith(REGISTRY):
            reference = parse_image_reference(os.fsdecode(place))
            repository = self.registries.writable(reference, mount_from=mount_from)
            yield RegistrySink(Uploader(repository, mount_from=mount_from, chunk=chunk), reference)
            return
        found = _reference(place)
        if found.form is not Form.OCI or found.digest is not None:
            raise UsageError(
                f"'{shown_path(place)}' cannot be pushed to", hint="push to docker://HOST/NAME or oci:DIR:NAME"
            )
        make_directory(found.path)
        sink = LayoutSink(DirectoryTarget(found.path), found.name)
        try:
            yield sink
        finally:
            sink.close()


def _reference(place: bytes) -> Reference:
    found = parse_reference(place)
    if found is None:
        raise UsageError(
            f"'{shown_path(place)}' is no place of images",
            hint="there are docker://HOST/NAME and oci:DIR:NAME, and for files DIR/ and s3://BUCKET/",
        )
    return found
