"""Who sees whom: drawings are the specification, and these tests read them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from self1e.model.attention import (
    dual_perception_attention_mask,
    language_attention_mask,
    published_attention_mask,
    seg_of_query,
)

DUAL = dual_perception_attention_mask.__doc__ or ""
DRAWINGS = {  # Table 7, beyond the causal mask; two image tokens between words, then [SEG] and one more word
    "causal": """
          w I I w S w
        w 1 . . . . .
        I 1 1 . . . .
        I 1 1 1 . . .
        w 1 1 1 1 . .
        S 1 1 1 1 1 .
        w 1 1 1 1 1 1
    """,
    "image": """
          w I I w S w
        w 1 . . . . .
        I 1 1 1 . . .
        I 1 1 1 . . .
        w 1 1 1 1 . .
        S 1 1 1 1 1 .
        w 1 1 1 1 1 1
    """,
    "image_seg": """
          w I I w S w
        w 1 . . . . .
        I 1 1 1 . 1 .
        I 1 1 1 . 1 .
        w 1 1 1 1 . .
        S 1 1 1 1 1 .
        w 1 1 1 1 1 1
    """,
    "image_text": """
          w I I w S w
        w 1 . . . . .
        I 1 1 1 1 1 1
        I 1 1 1 1 1 1
        w 1 1 1 1 . .
        S 1 1 1 1 1 .
        w 1 1 1 1 1 1
    """,
    "bidirectional": """
          w I I w S w
        w 1 1 1 1 1 1
        I 1 1 1 1 1 1
        I 1 1 1 1 1 1
        w 1 1 1 1 1 1
        S 1 1 1 1 1 1
        w 1 1 1 1 1 1
    """,
}


def read(drawing):
    """The tokens of a drawing, and who sees whom."""
    header, *lines = [line.split() for line in drawing.strip().splitlines()]
    return "".join(header), torch.tensor([[cell == "1" for cell in line[1 : 1 + len(header)]] for line in lines])


def tokens(*rows):
    """Image, [SEG] and real tokens of strings of I, w, S and p (padding), right-padded."""
    length = max(map(len, rows))
    letters = [list(row.ljust(length, "p")) for row in rows]
    return tuple(
        torch.tensor([[wanted(letter) for letter in row] for row in letters])
        for wanted in (lambda x: x == "I", lambda x: x == "S", lambda x: x != "p")
    )


def built(implementation, rule, *rows):
    """The mask that reaches the language model, as bool ``(B, N, N)``."""
    is_image, is_seg, is_real = tokens(*rows)
    config = LlamaConfig(attn_implementation=implementation)
    mask = language_attention_mask(
        config, is_image=is_image, is_seg=is_seg, is_real=is_real, rule=rule, dtype=torch.float32
    )
    n = is_image.shape[1]
    if mask is None:
        return torch.ones(n, n, dtype=torch.bool).tril().expand(len(rows), n, n)
    return (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(len(rows), n, n)


def test_the_mask_of_a_conversation_is_the_picture_in_the_docstring():
    lines = (seg_of_query.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == list("IIwSwS"))
    names, expected = read("\n".join(lines[start : start + 7]))
    is_image, is_seg, is_real = tokens(names)
    seen = seg_of_query(is_seg, -1)
    assert torch.equal(dual_perception_attention_mask(is_image, seen, is_real)[0], expected)
    config = LlamaConfig(attn_implementation="eager")
    mask = language_attention_mask(
        config, is_image=is_image, is_seg=seen, is_real=is_real, rule="image_seg", dtype=torch.float32
    )
    assert torch.equal(mask[0, 0] == 0, expected)


@pytest.mark.parametrize(
    ("query", "count", "kept"),
    [
        (-1, 1, "....S |..S  |...."),
        (0, 1, ".S... |..S  |...."),
        (-2, 1, ".S...|.....|...."),
        (1, 1, "....S|.....|...."),
    ],
)
def test_the_seg_of_a_query_is_kept_in_every_row(query, count, kept):
    _, is_seg, _ = tokens("ISwwS", "IwS", "Iww")
    expected = [[letter == "S" for letter in row.strip().ljust(5, ".")] for row in kept.split("|")]
    assert seg_of_query(is_seg, query, count).tolist() == expected


def test_several_seg_tokens_of_a_query_stay_together():
    _, is_seg, _ = tokens("ISSSSwSSSS")
    assert seg_of_query(is_seg, -1, 4)[0].tolist() == [False] * 6 + [True] * 4
    assert seg_of_query(is_seg, 0, 4)[0].tolist() == [False] + [True] * 4 + [False] * 5


def test_the_mask_is_the_picture_in_the_docstring():
    lines = DUAL.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == list("IIwwS"))
    names, expected = read("\n".join(lines[start : start + 6]))
    assert torch.equal(dual_perception_attention_mask(*tokens(names))[0], expected)
    assert torch.equal(built("eager", "image_seg", names)[0], expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rule", DRAWINGS)
def test_every_rule_is_its_drawing(rule, implementation):
    names, expected = read(DRAWINGS[rule])
    assert torch.equal(built(implementation, rule, names)[0], expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rule", DRAWINGS)
def test_a_row_without_seg_stays_causal(rule, implementation):
    found = built(implementation, rule, "wIIwS", "wIIww")
    assert torch.equal(found[1], torch.ones(5, 5, dtype=torch.bool).tril())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rule", DRAWINGS)
def test_padding_is_seen_by_no_real_token_and_changes_nothing_else(rule, implementation):
    names, _ = read(DRAWINGS[rule])
    alone = built(implementation, rule, names)[0]
    padded = built(implementation, rule, names, names + "wwww")[0]
    n = len(names)
    assert torch.equal(padded[:n, :n], alone)
    assert not padded[:n, n:].any()
    assert padded.any(-1).all()  # a row with no key turns softmax into NaN


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_dense_form_and_the_built_one_agree_on_real_rows(implementation):
    rows = ("wIIwIwS", "IIS", "wSIIwSw", "www")
    is_image, is_seg, is_real = tokens(*rows)
    dense = dual_perception_attention_mask(is_image, is_seg, is_real)
    assert torch.equal(built(implementation, "image_seg", *rows)[is_real], dense[is_real])


def test_the_published_mask_takes_id_0_for_padding():
    word, image, seg = 5, 7, 9
    ids = torch.tensor([[word, image, 0, seg, 0]])
    found = published_attention_mask(ids, image_token_id=image, seg_token_id=seg)
    assert found[0].long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_the_published_mask_of_a_batch_without_seg_has_no_diagonal_exception():
    ids = torch.tensor([[5, 7, 0]])
    found = published_attention_mask(ids, image_token_id=7, seg_token_id=9)
    assert found[0].long().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
