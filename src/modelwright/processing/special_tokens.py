"""The tokens DeepSeek-VL2 adds to a text tokenizer; ids are always the tokenizer's own."""

from transformers import AddedToken, PreTrainedTokenizerBase

GROUNDING_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
ROLE_TOKENS = ("<|User|>", "<|Assistant|>")


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, *, image_token: str, pad_token: str) -> None:
    """Give ``tokenizer`` what it lacks of padding, image, grounding and role tokens, in the official order.

    The official tokenizer class also brings an unknown token that the files need not name; where tokens have to be
    added it comes before them, so that they get their official ids.
    """
    wanted = (image_token, *GROUNDING_TOKENS, *ROLE_TOKENS)
    known = tokenizer.get_vocab()
    missing = [token for token in wanted if token not in known]
    if missing and tokenizer.unk_token is None:
        tokenizer.add_special_tokens({"unk_token": "<unk>"})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if missing:
        added = [AddedToken(token, special=True, normalized=False) for token in missing]
        tokenizer.add_tokens(added, special_tokens=True)
