"""The device and dtype of a network: what it says itself comes before its first parameter."""

import pytest
import torch

from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.guidance import classifier_free
from twosides.oracle import GaussianMixture
from twosides.placement import device_of, dtype_of
from twosides.sampling.sample import sample
from twosides.schedules import FlowMatching

BF16, META, CPU = torch.bfloat16, torch.device("meta"), torch.device("cpu")


class Mixed(torch.nn.Module):
    """In bfloat16, but for a table in float32 that comes first."""

    def __init__(self, dtype=BF16):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(2))
        self.weight = torch.nn.Parameter(torch.eye(2, dtype=dtype))

    def forward(self, z, t):
        return z @ self.weight


class Says(Mixed):
    dtype, device = BF16, META


def test_what_a_network_says_comes_before_its_first_parameter():
    assert dtype_of(Mixed()) == torch.float32 and device_of(Mixed()) == CPU
    assert dtype_of(Says()) == BF16 and device_of(Says()) == META
    z, level = torch.ones(3, 2), FlowMatching().at(0.5)
    assert Denoiser(Says())(z, level).x.dtype == torch.float32
    with pytest.raises(RuntimeError, match="dtype"):
        Denoiser(Mixed())(z, level)


def test_a_runner_that_is_no_module_says_it_too():
    class Engine:
        dtype, device = BF16, META

        def __call__(self, z, t):
            assert z.dtype == BF16
            return z

    assert Denoiser(Engine())(torch.ones(3, 2), FlowMatching().at(0.5)).x.dtype == torch.float32
    assert device_of(Denoiser(Engine())) == META


def test_what_says_nothing_of_use_is_not_believed():
    for words in ("cuda", None, torch.int8, torch.float8_e4m3fn):
        network = Mixed(torch.float32)
        network.dtype = network.device = words
        assert dtype_of(network) == torch.float32 and device_of(network) == CPU
    assert dtype_of(lambda z, t: z) is None and device_of(GaussianMixture.ring()) == CPU


def test_denoisers_of_denoisers_are_where_their_network_is():
    denoiser = Denoiser(Mixed().to("meta"))
    around = convert(denoiser, "v")
    for each in (denoiser, around, classifier_free(denoiser, 2.0, null={}), Denoiser(around, "v")):
        assert device_of(each) == META
    assert dtype_of(around) is None  # the conversion is computed in the state's dtype


def test_offloaded_weights_wait_elsewhere():
    accelerate = pytest.importorskip("accelerate")
    network = Mixed(torch.float32)
    accelerate.cpu_offload(network, execution_device=torch.device("cpu"))
    assert next(network.parameters()).device == META
    assert device_of(network) == device_of(Denoiser(network)) == CPU
    drawn = sample(Denoiser(network), (3, 2), steps=2, seed=0, device=device_of(network))
    assert torch.isfinite(drawn).all()


def test_a_wan_transformer_in_bfloat16_keeps_its_table_in_float32(tmp_path):
    """diffusers' loader leaves `scale_shift_table`, the first parameter, in float32."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
            out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
        ).save_pretrained(tmp_path)  # fmt: skip
    words = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for dtype in (BF16, torch.float32):
        with torch.random.fork_rng(devices=[]):
            network = diffusers.WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype)
        assert next(network.parameters()).dtype == torch.float32
        assert dtype_of(network) == network.dtype == dtype
        denoiser = Denoiser(network, "u", FlowMatching(), "1000t")
        told = {"encoder_hidden_states": words.to(dtype)}
        drawn[dtype] = sample(denoiser, (2, 4, 1, 4, 4), steps=2, seed=0, **told)
    rough, exact = drawn.values()
    assert rough.dtype == torch.float32 and 0 < float((rough - exact).abs().max()) < 0.05
    assert float(exact.std()) > 0.3


def test_nothing_is_read_back_from_the_device():
    """On "meta" no value can be read: a question asked of the data would be an error."""
    network = Mixed(torch.float32).to("meta")
    z = torch.empty(3, 2, device="meta")
    for output in ("x", "eps", "v", "u", "score", "F", "velocity"):
        denoiser = Denoiser(network, output)
        for t in (0.4, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)):
            level = FlowMatching().at(t)
            estimate = denoiser(z, level)
            guided = classifier_free(denoiser, 2.0, null={}, rescale=0.5)(z, level)
            assert {each.device for each in (*estimate, *guided)} == {META}
        (call,) = denoiser.prepare([FlowMatching().at(0.4).floats()], z)
        pair = denoiser.ask(z, call, {})
        assert call.time.device == META and {each.device for each in pair} == {META}
