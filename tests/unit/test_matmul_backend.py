"""Float32 products through oneDNN: what the probe measures, and that the setting is put back."""

import pytest
import torch

from zfdist.config import Config, ConfigError, EngineConfig, ModelConfig
from zfdist.evaluation import generate
from zfdist.model.kernels import matmul_backend
from zfdist.model.systems import build

CPU = torch.device("cpu")


@pytest.fixture
def setting():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    yield setting
    setting.fp32_precision = before


def test_the_probe_sees_operands_of_16_bits(setting):
    def rounded(a, b):
        return (a.bfloat16() @ b.bfloat16()).float()

    a, b = torch.randn(64, 1024), torch.randn(1024, 512)
    assert matmul_backend._error(rounded(a, b), a.double() @ b.double()) > 100 * matmul_backend.TOLERANCE
    assert matmul_backend._error(a @ b, a.double() @ b.double()) < matmul_backend.TOLERANCE


def test_the_setting_holds_inside_and_is_put_back(setting):
    before = setting.fp32_precision
    with pytest.raises(ZeroDivisionError), matmul_backend.through_onednn():
        assert setting.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert setting.fp32_precision == before


@pytest.mark.parametrize(
    ("error", "words", "routed"),
    [(3e-7, "by oneDNN (error 3e-07)", True), (2e-3, "would round here (error 2e-03)", False)],
)
def test_a_processor_that_rounds_is_refused(monkeypatch, setting, error, words, routed):
    monkeypatch.setattr(matmul_backend, "onednn_error", lambda: error)
    before = setting.fp32_precision
    with matmul_backend.float32(CPU) as said:
        assert words in said
        assert (setting.fp32_precision == "bf16") == routed
    assert setting.fp32_precision == before


def test_it_can_be_turned_off(setting):
    with matmul_backend.float32(CPU, onednn=False) as said:
        assert said == "by torch's default"
        assert setting.fp32_precision != "bf16"


@pytest.mark.parametrize(("precision", "rounds"), [("fp32", False), ("tf32", True), ("bf16", True), ("fp16", True)])
def test_a_gpu_rounds_as_the_precision_says_and_lstms_do_not_round_by_themselves(precision, rounds):
    """Also the heads' products under bf16 and fp16, whose inputs have no more bits; what torch says of it agrees."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.rnn, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    with matmul_backend.float32(torch.device("cuda"), precision):
        assert [backend.fp32_precision for backend in backends] == ["tf32" if rounds else "ieee"] * 3
        # As torch.compile and libraries ask; where the switches are at odds these raise.
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == rounds
        assert torch.get_float32_matmul_precision() == ("high" if rounds else "highest")
    assert [backend.fp32_precision for backend in backends] == before
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_tf32_is_refused_without_a_gpu():
    with pytest.raises(ConfigError, match=r"engine.precision = tf32: only a GPU rounds so.*use fp32 or auto"):
        EngineConfig(precision="tf32").precision_on("cpu")
    assert EngineConfig(precision="tf32").precision_on("cuda") == "tf32"


@pytest.mark.parametrize(("hidden", "sequences", "routed"), [(8, 40, False), (520, 2, False), (520, 40, True)])
def test_generation_takes_them_for_large_networks_and_many_sequences(hidden, sequences, routed, monkeypatch, setting):
    monkeypatch.setattr(matmul_backend, "onednn_error", lambda: 3e-7)
    model, seen = build(ModelConfig(hidden=hidden, z_dim=4, mlp_dim=8), 6, seed=0), []
    model.input.register_forward_hook(lambda *_: seen.append(setting.fp32_precision))
    generate.samples(model, sequences=sequences, steps=3, seed=0)
    assert [precision == "bf16" for precision in seen] == [routed] * 3


def test_the_knob_is_part_of_a_config():
    assert Config().with_values({"engine.matmul": "torch"}).engine.matmul == "torch"
