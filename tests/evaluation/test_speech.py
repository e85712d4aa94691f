"""Word error rates of speech families: what is heard is what the family's own calls write."""

import csv
import json

import pytest
import soundfile
import torch
from spoken import make_set

import compress
from compress.errors import RequestError
from compress.evaluation.error_rates import error_rate

SEED = 0


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), count=4)


def wav2vec2(place):
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (place / "symbols.json").write_text(json.dumps({c: i for i, c in enumerate(symbols)}))
    config = Wav2Vec2Config(
        vocab_size=31, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, conv_dim=[16] * 3, conv_kernel=[10, 3, 3], conv_stride=[5, 4, 4],
        num_feat_extract_layers=3, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    tokenizer = Wav2Vec2CTCTokenizer(str(place / "symbols.json"))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000)
    return Wav2Vec2ForCTC(config), Wav2Vec2Processor(extractor, tokenizer)


def lasr(place):
    from transformers import LasrCTCConfig, LasrFeatureExtractor, LasrForCTC, LasrProcessor

    from compress.lowrank.scratch.tokens import make_tokenizer

    encoder = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "num_mel_bins": 20, "subsampling_conv_channels": 8,
    }  # fmt: skip
    extractor = LasrFeatureExtractor(
        feature_size=20, sampling_rate=8000, hop_length=80, win_length=200, n_fft=256
    )
    model = LasrForCTC(LasrCTCConfig(vocab_size=5, pad_token_id=4, encoder_config=encoder))
    return model, LasrProcessor(extractor, make_tokenizer(["low mid high top"], "word"))


def whisper(place):
    from tokenizers import pre_tokenizers
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    end = len(vocabulary)
    special = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>")
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], **special)
    extractor = WhisperFeatureExtractor(
        feature_size=20, sampling_rate=8000, hop_length=80, chunk_length=2, n_fft=200
    )
    config = WhisperConfig(
        vocab_size=end + 1, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, num_mel_bins=20, max_source_positions=100, max_target_positions=16,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=end,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config), WhisperProcessor(extractor, tokenizer)


@pytest.mark.parametrize("make", [wav2vec2, lasr, whisper])
def test_families_hear_as_their_own_calls_do(make, recordings, tmp_path):
    torch.manual_seed(SEED)
    model, processor = make(tmp_path)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    model.eval()
    found = compress.evaluate(str(tmp_path / "model"), wer=str(recordings)).as_dict()["models"][0]
    rows = list(csv.DictReader((recordings / "manifest.csv").open()))
    heard = []
    for row in rows:
        samples = soundfile.read(recordings / row["audio"], dtype="float32")[0]
        inputs = processor.feature_extractor(samples, sampling_rate=8000, return_tensors="pt")
        with torch.no_grad():
            if make is whisper:
                tokens = model.generate(inputs["input_features"], do_sample=False, max_length=15)
                heard += processor.batch_decode(tokens, skip_special_tokens=True)
            else:
                heard += processor.batch_decode(model(**inputs).logits.argmax(-1))
    said = [row["text"] for row in rows]
    for unit in ("wer", "cer"):
        own = error_rate(said, [" ".join(text.split()) for text in heard], unit)
        assert found[unit][str(recordings)]["value"] == pytest.approx(own.value)


def test_limit_and_comparison(recordings, tmp_path):
    torch.manual_seed(SEED)
    model, processor = lasr(tmp_path)
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    found = compress.evaluate(
        str(tmp_path / "one"), against=str(tmp_path / "two"), wer=str(recordings), limit=3
    )
    entry = found.as_dict()["models"][0]
    assert entry["wer"][str(recordings)]["utterances"] == 3
    assert entry["comparison"]["wer"][str(recordings)]["difference"] == 0
    assert "word error rate, 3 utterances" in found.render()


def test_models_that_do_not_transcribe_are_refused(demo_model, recordings, tmp_path):
    with pytest.raises(RequestError, match="word error rates need a speech model"):
        compress.evaluate(str(demo_model), wer=str(recordings))
    torch.manual_seed(SEED)
    model, _ = lasr(tmp_path)
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(RequestError, match="has no processor"):
        compress.evaluate(str(tmp_path / "bare"), wer=str(recordings))


def test_another_rate_is_refused_or_converted(tmp_path):
    make_set(tmp_path / "set", count=2, rate=16000)
    torch.manual_seed(SEED)
    model, processor = lasr(tmp_path)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError, match="16000 samples a second, and the model takes 8000"):
        compress.evaluate(str(tmp_path / "model"), wer=str(tmp_path / "set"))
    found = compress.evaluate(str(tmp_path / "model"), wer=str(tmp_path / "set"), resample=True)
    assert found.as_dict()["models"][0]["wer"]
