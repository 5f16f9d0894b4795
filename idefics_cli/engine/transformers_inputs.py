"""The models of transformers, by what makes their arguments: our prompts and pixels, or the checkpoint's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families.base import Family, PromptFamily
from idefics_cli.engine.families.idefics1 import Idefics1Family
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.engine.families.idefics3 import Idefics3Family
from idefics_cli.engine.families.processor import ProcessorFamily
from idefics_cli.engine.families.prompt_length import check_length, check_text
from idefics_cli.engine.native.models.siglip import normalize
from idefics_cli.engine.transformers_generate import best_choice_anew
from idefics_cli.engine.transformers_loading import load_processor
from idefics_cli.engine.transformers_model import GenerateModel
from idefics_cli.errors import FailureKind, RowFailedError, first_line
from idefics_cli.records import Answer, Crop, Request


class TransformersModel(GenerateModel):
    """A checkpoint whose prompts and pixels are made here."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: PromptFamily,
        settings: ModelSettings,
        choice: DeviceChoice,
        *,
        random_weights: bool = False,
    ) -> None:
        """See `GenerateModel`."""
        self._prompts, self._normalization = family.prompt_builder(settings.prompt), family.normalization
        self.is_on_host = False
        """Whether pixels are normalized and padded on the host, as transformers' processor does."""
        super().__init__(checkpoint, family, settings, choice, random_weights=random_weights)

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Return the model's arguments for requests, padded on the left.

        Raises:
            RowFailedError: a question can't be asked, or its prompt leaves no room for an answer.

        """
        prompts = []
        for request in requests:
            check_text(request.conversation, self._family.max_positions)
            counts, columns = [len(page.crops) for page in request.pages], [page.columns for page in request.pages]
            prompts.append(self._prompts.build(request.conversation, counts, columns=columns).tokens)
        for request, prompt in zip(requests, prompts, strict=True):
            check_length(len(prompt), self._rules.for_request(request.generation), self._family.max_positions)
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        attention = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :], attention[row, longest - len(prompt) :] = torch.tensor(prompt), 1
        pixels, mask = self.pixels([[crop for page in request.pages for crop in page.crops] for request in requests])
        return {
            "input_ids": tokens.to(self.device),
            "attention_mask": attention.to(self.device),
            "pixel_values": pixels.to(self.device, self.model.dtype),
            "pixel_attention_mask": mask.to(self.device),
        }

    def pixels(self, crops: Sequence[Sequence[Crop]]) -> tuple[Tensor, Tensor]:
        """Pad crops to the largest: (requests, most crops, 3, height, width), and the mask of real pixels."""
        device = torch.device("cpu") if self.is_on_host else self.device
        dtype = torch.float32 if self.is_on_host else self.model.dtype
        every = [crop for some in crops for crop in some]
        shape = (len(crops), max(map(len, crops)), 3, *(max(crop.shape[axis] for crop in every) for axis in (0, 1)))
        pixels = torch.zeros(shape, device=device, dtype=dtype)
        mask = torch.zeros((*shape[:2], *shape[3:]), device=device, dtype=torch.long)
        for row, some in enumerate(crops):
            for index, crop in enumerate(some):
                height, width = crop.shape[:2]
                one = torch.from_numpy(np.array(crop))[None].to(device)
                pixels[row, index, :, :height, :width] = normalize(one, self._normalization, dtype)[0]
                mask[row, index, :height, :width] = 1
        return pixels, mask


class Idefics1Model(TransformersModel):
    """An Idefics of the first generation, which wants to know which images each token sees."""

    _best_choice = staticmethod(best_choice_anew)

    def __init__(
        self, checkpoint: Checkpoint, family: Idefics1Family, settings: ModelSettings, choice: DeviceChoice
    ) -> None:
        """See `GenerateModel`."""
        self._image_token_id = family.image_token_id
        super().__init__(checkpoint, family, settings, choice)

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """See `GenerateModel`."""
        inputs = super()._inputs(requests)
        del inputs["pixel_attention_mask"]
        # A token sees the last image before it: (requests, tokens, images).
        seen = (inputs["input_ids"] == self._image_token_id).cumsum(1)
        numbers = torch.arange(1, inputs["pixel_values"].shape[1] + 1, device=seen.device)
        inputs["image_attention_mask"] = (seen[..., None] == numbers).long()
        return inputs


class ProcessorModel(GenerateModel):
    """A checkpoint whose own processor makes the arguments."""

    _best_choice = staticmethod(best_choice_anew)

    def __init__(
        self, checkpoint: Checkpoint, family: ProcessorFamily, settings: ModelSettings, choice: DeviceChoice
    ) -> None:
        """See `GenerateModel`; raises ModelError also where the processor can't be loaded."""
        self._name, self._prompts = checkpoint.name, family.prompt_builder(settings.prompt)
        self._processor: Any = load_processor(checkpoint)
        # In transformers' cross attention a text before its first image sees all there are, padded ones too.
        self._sees_padding = "cross_attention_mask" in self._processor.model_input_names
        super().__init__(checkpoint, family, settings, choice)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `GenerateModel`; where padded images would be seen, only requests with as many pages go together."""
        if not self._sees_padding:
            return super().answer(requests)
        found: dict[int, Answer] = {}
        for count in {len(request.pages) for request in requests}:
            group = [at for at, request in enumerate(requests) if len(request.pages) == count]
            found.update(zip(group, super().answer([requests[at] for at in group]), strict=True))
        return [found[at] for at in range(len(requests))]

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """See `GenerateModel`."""
        texts = [self._text(request) for request in requests]
        images = [[Image.fromarray(np.array(crop)) for page in one.pages for crop in page.crops] for one in requests]
        bos = self._processor.tokenizer.bos_token
        try:
            inputs = self._processor(
                text=texts,
                images=images,
                padding=True,
                return_tensors="pt",
                add_special_tokens=not (bos and texts[0].startswith(bos)),  # templates may write it themselves
            )
        except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
            # A batch is asked again one by one, so that the number is that of the request at fault.
            pages = "a page" if len(images[0]) == 1 else f"{len(images[0])} pages"
            words = f"{self._name}: its own processor does not take a prompt with {pages}: {first_line(error)}"
            raise RowFailedError(FailureKind.BAD_QUESTION, words) from error
        for request, length in zip(requests, inputs["attention_mask"].sum(1).tolist(), strict=True):
            check_length(length, self._rules.for_request(request.generation), self._family.max_positions)
        moved: Mapping[str, Tensor] = inputs.to(self.device, dtype=self.model.dtype)
        return dict(moved)

    def _text(self, request: Request) -> str:
        """Return the prompt of a request by the checkpoint's chat template, images not expanded.

        Raises:
            RowFailedError: the template does not take this conversation.

        """
        check_text(request.conversation, self._family.max_positions)
        messages = self._prompts.messages(request.conversation)
        try:
            return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program: it can fail in any way
            words = f"{self._name}: the chat template failed: {first_line(error)}"
            raise RowFailedError(FailureKind.BAD_QUESTION, words) from error

    def _warning(self, request: Request) -> str:
        """See `GenerateModel`."""
        return self._prompts.warning(request.turns) if request.turns else ""


def load_model(checkpoint: Checkpoint, family: Family, settings: ModelSettings, choice: DeviceChoice) -> GenerateModel:
    """Load a checkpoint with what makes the arguments of its kind of model.

    Raises:
        ModelError: see `GenerateModel`.

    """
    if isinstance(family, Idefics2Family | Idefics3Family):
        return TransformersModel(checkpoint, family, settings, choice)
    if isinstance(family, Idefics1Family):
        return Idefics1Model(checkpoint, family, settings, choice)
    assert isinstance(family, ProcessorFamily)
    return ProcessorModel(checkpoint, family, settings, choice)
