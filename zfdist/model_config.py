"""The network's section of a config: its system, sizes, density and the named choices of the paper and its code."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from zfdist.config_base import Between, ConfigError, Section

Count = Annotated[int, Between(1, 2**31)]
CountOrZero = Annotated[int, Between(0, 2**31)]

_ZFORCING_ONLY = ("aux_sees_h", "latent_sees_x", "output_skip", "output_sees_z", "layer_norm_z")
_WITHOUT_LATENTS = ("rnn", "lru")
_BY_AUTOGRAD = ("layer_norm_z", "vrnn_features")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The network: sizes, output density and the named choices of the paper and its code."""

    PATH: ClassVar[str] = "model"

    system: Literal["zforcing", "storn", "vrnn", "srnn", "rnn", "lru"] = "zforcing"
    """Which recurrent network; rnn and lru have no latents and give the exact likelihood."""
    hidden: Count = 1024
    """Units of each LSTM, forward, backward or of inference; of each block of lru."""
    z_dim: Count = 256
    """Dimensions of the latent z_t."""
    mlp_dim: Count = 512
    """Hidden units of the prior, posterior, auxiliary and output nets."""
    output_layers: Annotated[int, Between(0, 8)] = 1
    """Hidden layers of the output nets f_o (forward and backward)."""
    parameter_budget: CountOrZero = 0
    """Parameters that the network should have, heads without weight in the objective not counted: hidden is chosen,
    mlp_dim in proportion; 0 takes both as they are."""
    density: Literal["gaussian", "mixture", "autoregressive", "bernoulli", "categorical"] = "gaussian"
    """Density of an observation given the state: frames (gaussian, mixture, autoregressive), bits or tokens."""
    mixture_components: Count = 20
    """Gaussians of a mixture."""
    causal_units: Count = 16
    """autoregressive: units of the causal net that reads the earlier samples of a frame."""
    sigma_floor: Annotated[float, Between(1e-8, 1.0)] = 1e-3
    """Smallest standard deviation of the output density, in normalised units."""
    embed_dim: CountOrZero = 0
    """Size of the embedding of x, a table for tokens and linear for frames; 0 for none (frames and bits only)."""
    embed_separate: bool = False
    """Give the inference net an embedding of its own; else both directions share one."""
    latent_clamp: Annotated[float, Between(0.0, 100.0)] = 8.0
    """Bound on mean and log-variance of prior, posterior and auxiliary nets; 0 for none."""
    aux_tanh: bool = True
    """Pass the auxiliary mean through tanh, since b_t lies in (-1, 1)."""
    aux_stop_gradient: Literal["target", "backward_net"] = "target"
    """Where alpha's gradient stops. target: at the target b_t alone, as in the authors' code. backward_net: before all
    of the backward net, also on the way b_t -> q -> z_t, as the paper's text says; unrolls twice."""
    aux_sees_h: bool = False
    """zforcing: the auxiliary net reads h_{t-1} beside z_t, as its authors' code does."""
    latent_sees_x: bool = False
    """zforcing: prior and posterior read the embedded x_t as well, as in a branch of its authors' code."""
    output_skip: bool = False
    """zforcing: the output net reads the embedded x_t beside h_t, as its authors' first code does."""
    output_sees_z: bool = False
    """zforcing: the output net reads z_t beside h_t, as in a branch of its authors' code and in vrnn and srnn."""
    layer_norm_z: bool = False
    """zforcing: z_t sets gain and bias of a layer norm of the recurrent product instead of being an input."""
    vrnn_prior: Literal["learned", "standard"] = "learned"
    """vrnn: prior from h_{t-1}, or N(0, I)."""
    vrnn_features: bool = False
    """vrnn: all nets read x and z through feature extractors phi_x and phi_z of mlp_dim units, as published (Chung et
    al., 2015); z's is inside the loop over time, which then runs by autograd (model.recurrence auto or reference)."""
    lru_blocks: Annotated[int, Between(1, 64)] = 4
    """lru: blocks of linear recurrent units, one after another."""
    label_classes: CountOrZero = 0
    """Classes that a head on the latents tells apart, trained jointly; 0 for no such head."""
    recurrence: Literal["auto", "measured", "reference", "bptt", "native", "graph", "triton"] = "auto"
    """Implementation of the time loop (zforcing, vrnn, srnn, which takes triton for graph); all give the same numbers
    to rounding. measured: the fastest that is right, tried on this machine before the first step; auto: that on a GPU,
    native on a CPU. graph and triton are for a GPU; on a CPU they stand for auto."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density == "categorical" and self.embed_dim == 0:
            raise ConfigError("model.embed_dim = 0: tokens (model.density = categorical) need an embedding, e.g. 300")
        if self.system in _WITHOUT_LATENTS and self.label_classes > 0:
            raise ConfigError(
                f"model.label_classes = {self.label_classes}: model.system = {self.system} has no latents to read"
            )
        for name in _ZFORCING_ONLY:
            if getattr(self, name) and self.system != "zforcing":
                raise ConfigError(f"model.{name} = true: a switch of zforcing, and model.system is {self.system}")
        if self.vrnn_features and self.system != "vrnn":
            raise ConfigError(f"model.vrnn_features = true: a switch of vrnn, and model.system is {self.system}")
        for name in _BY_AUTOGRAD:
            if getattr(self, name) and self.recurrence not in ("auto", "reference"):
                raise ConfigError(
                    f"model.recurrence = {self.recurrence}: does not know model.{name}; use auto or reference"
                )
