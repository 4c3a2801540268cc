import copy
import json
import pickle
import shutil

import pytest
from transformers import PreTrainedTokenizerFast

from self1e.errors import CheckpointError
from self1e.processing.tokenizers import InternLM2Tokenizer, add_segmentation_tokens, added_tokens, load_tokenizer

TEXT = (
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\n What is the red cup?<|im_end|>\n<|im_start|>assistant\nIt is [SEG]."
)


def test_each_family_gets_its_class(qwen, internlm2):
    assert isinstance(qwen, PreTrainedTokenizerFast)
    assert type(internlm2) is InternLM2Tokenizer


def test_internlm2_is_sentencepiece_between_added_tokens(internlm2):
    pieces = internlm2.sp_model
    added = added_tokens(internlm2)
    expected = [added["<|im_start|>"], *pieces.encode("user\n What"), added["<|im_end|>"], *pieces.encode("\n")]
    assert internlm2.encode("<|im_start|>user\n What<|im_end|>\n", add_special_tokens=False) == expected
    assert internlm2.encode("user")[0] == internlm2.bos_token_id


def test_an_added_token_takes_the_place_of_its_piece(internlm2):
    """Real InternLM2: 92544 pieces, nine tokens after them, and <|im_start|> on piece 92543."""
    pieces = internlm2.sp_model.vocab_size()
    assert internlm2.vocab_size == pieces
    assert added_tokens(internlm2)["<|im_start|>"] < pieces
    assert len(internlm2) == pieces + 5 + 2  # <img> ... </box>, [SEG], [SEGT]
    assert internlm2.convert_tokens_to_ids(["[SEG]", "[SEGT]"]) == [pieces + 5, pieces + 6]


@pytest.mark.parametrize("text", [TEXT, "a  b ", " x", "naïve 日本 🙂", "\n\n"])
def test_decoding_gives_the_text_back(qwen, internlm2, text):
    for tokenizer in (qwen, internlm2):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_decoding_can_leave_out_special_tokens(internlm2):
    ids = internlm2.encode("It is [SEG].<|im_end|>", add_special_tokens=False)
    assert internlm2.decode(ids, skip_special_tokens=True) == "It is [SEG]."
    with pytest.raises(IndexError, match="outside the vocabulary"):
        internlm2.decode([len(internlm2)])


def test_segmentation_tokens_are_appended_once_and_plain(folder):
    tokenizer = load_tokenizer(folder)
    size = len(tokenizer)
    assert add_segmentation_tokens(tokenizer) == [size, size + 1]
    assert add_segmentation_tokens(tokenizer) == [size, size + 1]
    assert len(tokenizer) == size + 2
    assert "[SEG]" not in tokenizer.all_special_tokens
    assert tokenizer.encode("a[SEG]", add_special_tokens=False)[-1] == size


def test_saving_and_loading_changes_no_id(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    add_segmentation_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    back = load_tokenizer(tmp_path)
    assert type(back) is type(tokenizer)
    assert back.get_vocab() == tokenizer.get_vocab()
    assert back.encode(TEXT) == tokenizer.encode(TEXT)
    assert (back.pad_token_id, back.eos_token_id, back.bos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
    )


def test_workers_get_equal_copies(internlm2):
    for same in (pickle.loads(pickle.dumps(internlm2)), copy.deepcopy(internlm2)):
        assert same.encode(TEXT) == internlm2.encode(TEXT)


def test_saving_works_when_the_source_is_gone(internlm2_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(internlm2_folder, source)
    tokenizer = load_tokenizer(source)
    shutil.rmtree(source)
    tokenizer.save_pretrained(tmp_path / "target")
    assert load_tokenizer(tmp_path / "target").encode(TEXT) == tokenizer.encode(TEXT)


def test_a_config_that_names_remote_code_is_not_asked(qwen_folder, internlm2_folder, tmp_path):
    for index, source in enumerate((qwen_folder, internlm2_folder)):
        target = tmp_path / str(index)
        shutil.copytree(source, target)
        config = {
            "model_type": "internvl_chat",
            "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        }
        (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert len(load_tokenizer(target)) == len(load_tokenizer(source))


def test_a_folder_without_tokenizer_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
