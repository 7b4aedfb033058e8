"""What ``inspect_model`` says is what the model is, and its checks catch what they are for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

from refusal import ChatModel, Check, inspect_model
from refusal.audits.self_checks import (
    check_ablation,
    check_additive,
    check_cache,
    check_rows,
    check_weights,
)
from refusal.model.hooks import Edit, hooked

ALL = [*tiny_models.FAMILIES, *tiny_models.OTHERS]


@pytest.mark.parametrize("family", ALL)
def test_every_family_passes_and_is_described(family: str) -> None:
    model = tiny_models.chat_model(family)
    found = inspect_model(model)
    kind = tiny_models.family(family)
    assert found.ok, found.checks
    assert len(found.checks) == 5
    assert found.tied == kind.tied
    assert found.shares_rows == (
        not kind.recurrent and family not in ("gemma2", "gemma3_text")
    )  # a window of 8 tokens
    assert sum(group.count for group in found.kinds) == tiny_models.LAYERS
    for group in found.kinds:
        assert group.post_norms == (group.writers if kind.post_norms else ())
    assert found.parameters == sum(parameter.numel() for parameter in model.hf.parameters())
    assert (found.dtype, found.device, found.d_model) == ("float32", "cpu", tiny_models.WIDTH)


def test_the_template_is_described() -> None:
    chatml = inspect_model(tiny_models.chat_model(template="chatml"))
    assert chatml.suffix_tokens[:2] == ("<|end|>", "\n")
    assert chatml.suffix_ids[0] == 3
    assert (chatml.bos_written, chatml.bos_doubled, chatml.thinking_switch) == (0, False, True)
    other = inspect_model(tiny_models.chat_model(template="no-system"))
    assert (other.bos_written, other.bos_doubled, other.thinking_switch) == (1, False, False)


def test_a_tokenizer_that_would_write_bos_again_is_named() -> None:
    model = tiny_models.chat_model(template="no-system")
    plain = type(model.tokenizer).__call__

    class Doubling(type(model.tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> Any:
            found = plain(self, text, add_special_tokens=add_special_tokens, **options)
            if add_special_tokens:
                found["input_ids"] = [self.bos_token_id, *found["input_ids"]]
            return found

    model.tokenizer.__class__ = Doubling
    found = inspect_model(model)
    assert (found.bos_written, found.bos_doubled) == (1, True)


def broken(
    model: ChatModel,
    name: str,
    change: Callable[[Tensor], Tensor],
    check: Callable[[ChatModel], Check],
) -> Check:
    with hooked([Edit(model.hf.get_submodule(name), "output", change)]):
        return check(model)


def test_a_write_that_the_map_lacks_fails_the_additive_check(model: ChatModel) -> None:
    assert check_additive(model).ok
    found = broken(model, model.sites.blocks[1], lambda x: x * 1.01, check_additive)
    assert not found.ok
    assert found.value > 1e-3


def test_a_write_after_the_hooks_fails_the_ablation_check(model: ChatModel) -> None:
    assert check_ablation(model).ok
    assert not broken(model, model.sites.blocks[3], lambda x: x + 1.0, check_ablation).ok


def test_prompts_that_mix_fail_the_rows_check(model: ChatModel) -> None:
    assert check_rows(model).ok
    assert not broken(
        model, model.sites.blocks[2], lambda x: x + x.roll(1, 1), check_rows
    ).ok  # once packing is settled


def test_a_cache_that_forgets_fails_the_cache_check(model: ChatModel) -> None:
    assert check_cache(model).ok

    def only_in_steps(x: Tensor) -> Tensor:
        return x * -1 if x.shape[1] == 1 else x

    assert not broken(model, model.sites.writers[2][0], only_in_steps, check_cache).ok


def test_a_writer_that_the_map_lacks_fails_the_weights_check(model: ChatModel) -> None:
    found = check_weights(model)
    assert found is not None
    assert found.ok
    model.sites = replace(
        model.sites, writers=(model.sites.writers[0][:1], *model.sites.writers[1:])
    )
    found = check_weights(model)
    assert found is not None
    assert not found.ok


def test_a_value_that_is_not_a_number_fails(model: ChatModel) -> None:
    with torch.no_grad():
        model.hf.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(float("nan"))  # type: ignore[operator]
    assert [check.ok for check in inspect_model(model).checks] == [False] * 5


def test_half_precision_has_wider_limits_and_meets_them() -> None:
    hf = tiny_models.network("granite")
    hf.to(torch.bfloat16)  # type: ignore[arg-type]
    found = inspect_model(ChatModel(hf, tiny_models.tokenizer(), name="half"))
    assert found.dtype == "bfloat16"
    assert found.ok, found.checks
    assert found.checks[1].limit == 1e-2
