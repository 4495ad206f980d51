"""Train the 1024-entry, Qwen2-style byte-level BPE tokenizer on question and answer text.

    python make_tokenizer.py OUT      writes OUT/tokenizer.json and OUT/tokenizer_config.json (with the chat template)
"""
import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import scenes

VOCAB = 1024
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]   # ids 1020 .. 1023
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
# Generic text, so that unseen English still splits into words rather than letters.
EXTRA = """a the of to and in is it you that he was for on are with as his they be at one have this from or had by hot but some what there we can out
other were all your when up use word how said an each she which do their time if will way about many then them would write like so these her long make
thing see him two has look more day could go come did my sound no most number who over know water than call first people may down side been now find
user assistant system helpful drone aerial image picture photo view scene flight altitude camera landing takeoff hover mission waypoint route target
search rescue vehicle road street bridge river lake field forest grass soil asphalt roof house tower obstacle safe danger north south east west
left right top bottom center middle near far close next behind above below between around inside outside move turn stop start return follow track
describe count locate list give show tell where color colour red green blue yellow white black car truck building tree person boat summary objects
You are a helpful assistant. Please answer the question about the image. Is there any? Yes. No. Unknown. 0 1 2 3 4 5 6 7 8 9 10 12 15 20 50 100""".split()


def corpus(n=4000):
    r = random.Random(7)
    for _ in range(n):
        objects = []
        for _ in range(r.randint(1, 6)):
            c = r.choice(scenes.CLASSES)
            color = "green" if c == "tree" else r.choice(scenes.COLORS)
            objects.append(dict(cls=c, color=color, x=r.uniform(0, 255), y=r.uniform(0, 255)))
        meta = dict(background=r.choice(scenes.BACKGROUNDS), objects=objects)
        for family in scenes.FAMILIES:
            yield from scenes.qa(meta, family, r) or ()
    for _ in range(30):
        for w in EXTRA:
            yield from (w, " " + w, " " + w.capitalize())
    yield from ["user\n", "assistant\n", "system\n"] * 50


def train():
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS), min_frequency=1, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tok.get_vocab_size() == VOCAB - len(SPECIALS), tok.get_vocab_size()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return tok


def config():
    added = {str(VOCAB - len(SPECIALS) + i): dict(content=s, lstrip=False, normalized=False, rstrip=False,
                                                  single_word=False, special=True) for i, s in enumerate(SPECIALS)}
    return dict(add_prefix_space=False, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None,
                clean_up_tokenization_spaces=False, errors="replace", split_special_tokens=False, model_max_length=1024,
                tokenizer_class="PreTrainedTokenizerFast", additional_special_tokens=SPECIALS[1:],
                added_tokens_decoder=added, image_token="<image>", chat_template=CHAT_TEMPLATE)


def main():
    out = sys.argv[1]
    tok = train()
    tok.save(os.path.join(out, "tokenizer.json"))
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump(config(), f, indent=2)
    for s in ("user\n", "2 red cars, 1 white building and 1 tree on grass", "no green cars", "helicopter landing zone"):
        print(tok.encode(s).tokens)


if __name__ == "__main__":
    main()
