"""`SamplingParams`: what to draw, in transformers' words and with its own logits processors.

`HANDLED` and `unhandled` say which settings of `generate` rl_reasoner.rollout.engine supports.
Knows nothing of trainers.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import StopStringCriteria, logits_process

HANDLED = frozenset(
    (
        *("do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p"),
        *("epsilon_cutoff", "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size"),
        *("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"),
        *("min_length", "min_new_tokens", "max_new_tokens", "stop_strings"),
        *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
        *("renormalize_logits", "remove_invalid_values", "pad_token_id", "bos_token_id"),
    )
)
"""Arguments of `generate` that the engine supports, or that change nothing here."""
_ELSEWHERE = (
    *("num_beams", "num_return_sequences", "guidance_scale", "watermarking_config"),
    *("penalty_alpha", "dola_layers", "max_time", "prompt_lookup_num_tokens", "token_healing"),
    *("constraints", "force_words_ids"),
)
# processors that take tokens out, and leave the others as likely to each other as they were
_CUTS_BY_LOGITS = (
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.TopHLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.SuppressTokensLogitsProcessor,
)
_CUTS_BY_IDS = (
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
)
# processors that do not look at the tokens before
_BY_LOGITS = (
    *_CUTS_BY_LOGITS,
    logits_process.TemperatureLogitsWarper,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
)
_SHARES_KEPT = (logits_process.TemperatureLogitsWarper, logits_process.LogitNormalization)


@dataclass(frozen=True)
class SamplingParams:
    """What to draw: trl's names, transformers' meanings; temperature 0 is greedy.

    `config` stands for all of transformers' settings (`HANDLED`), instead of the fields before it.
    """

    max_tokens: int
    ends: tuple[int, ...]
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    begin_suppress: tuple[int, ...] = ()  # token ids that may not come first
    config: GenerationConfig | None = None
    stop: StopStringCriteria | None = None
    policy_temperature: float | None = None  # of `policy_logps`; none are kept for None
    weights: torch.dtype | None = None  # of copies of the model's for sampling; None: its own
    keep_mask: bool = False  # give `SampledCompletion.kept`, where anything is cut off

    @property
    def settings(self) -> GenerationConfig:
        """The settings in transformers' form."""
        if self.config is not None:
            return self.config
        return GenerationConfig(
            do_sample=bool(self.temperature),
            temperature=float(self.temperature) or None,
            top_k=(self.top_k or 0) if self.temperature else None,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    def processors(self, model: Any, length: int) -> LogitsProcessorList:
        """What `model.generate` does with the logits behind a prompt of `length` tokens."""
        settings = copy.copy(self.settings)
        settings.max_length = length + self.max_tokens
        settings._eos_token_tensor = torch.tensor(self.ends, device=model.device)
        processors: LogitsProcessorList = model._get_logits_processor(
            settings, input_ids_seq_length=length, device=model.device
        )
        return processors


def unhandled(given: Mapping[str, Any], settings: GenerationConfig) -> str | None:
    """The first setting that the engine does not support: of `given`, or of all `settings`."""
    for name, value in given.items():
        if value is not None and name not in HANDLED:
            return f"generation_kwargs ({name})"
    for name in _ELSEWHERE:
        if getattr(settings, name, None) not in (None, False, 0, 1):
            return f"the setting {name} of generate"
    return None


def is_the_policy(processors: LogitsProcessorList, temperature: float) -> bool:
    """Whether these processors leave the policy's own distribution at this temperature."""
    plain = all(isinstance(processor, _SHARES_KEPT) for processor in processors)
    return plain and temperature_of(processors) == temperature


def temperature_of(processors: LogitsProcessorList) -> float:
    """What these processors divide the logits by."""
    divides = logits_process.TemperatureLogitsWarper
    return float(math.prod(p.temperature for p in processors if isinstance(p, divides)))


def not_a_cut_off(processors: LogitsProcessorList) -> str | None:
    """The first of these processors that does more than divide and take tokens out, by name."""
    known = (*_SHARES_KEPT, *_CUTS_BY_LOGITS, *_CUTS_BY_IDS)
    return next((type(p).__name__ for p in processors if not isinstance(p, known)), None)


def only_temperature(processors: LogitsProcessorList) -> float | None:
    """The temperature, where these processors divide by one and do no more."""
    left = 1.0
    for processor in processors:
        if not isinstance(processor, logits_process.TemperatureLogitsWarper):
            return None
        left *= processor.temperature
    return left


def looks_back(processors: LogitsProcessorList) -> bool:
    """Whether one of these processors may depend on earlier tokens or their number."""
    return any(not isinstance(processor, _BY_LOGITS) for processor in processors)
