"""What all networks share: embeddings, output net, label head; the bound's terms; inference; the loop that generates.

A network is a class in a file of its own with five parts that distinguish it:

    _assemble(embedded)             make the parts; also the order in which checkpoints and optimizers have them
    _pass(x, y, lengths, eps)       run over a batch with latents from the posterior
    _start(x, z)                    the state before the first observation is generated
    _stepping(steps)                one step of generation: (state, x_t, what is drawn) -> x_{t+1}, state
    what is named below             has_latents, weight_of, inference_embedding, where it is not as most have it

Shapes: T time, B batch, X values of a frame (tokens have none), E embedded observation, H what the output net reads,
Z latent, N noise of an observation; or in place of B the rows of noise, K * B.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density, noise_size
from zfdist.model.distributions import Gaussian, standard_gaussian
from zfdist.model.layers import Output, embedded_size, embedding, initialise, is_many, label_head, repeat_batch
from zfdist.model.terms import Generated, Inferred, Terms, latent_terms


class Pass(NamedTuple):
    """What running over a batch gives, under the posterior."""

    features_TBH: Tensor  # what the output net reads
    prior: Callable[[], Gaussian]  # computed when it is asked for: inference does without
    posterior: Gaussian
    z_TBZ: Tensor
    state: Any  # after the last step, for generation to go on from


def exact_pass(features_TNH: Tensor, eps_TNZ: Tensor, state: Any) -> Pass:
    """Return what running over a batch gives without latents, of which is said N(0, I) and z = 0."""
    nothing = standard_gaussian(eps_TNZ)
    return Pass(features_TNH, lambda: nothing, nothing, nothing.mean, state)


class Draw(NamedTuple):
    """What is drawn in one step of generation."""

    latent_BZ: Tensor  # z_t, or the noise that the prior makes it of
    is_given: bool  # whether that is z_t
    output: Output
    eps_BN: Tensor
    temperature: float

    def latent(self, prior: Callable[[], Gaussian]) -> Tensor:
        """Return z_t: [B, Z]; the prior is computed only if it is drawn from."""
        return self.latent_BZ if self.is_given else prior().sample(self.latent_BZ)

    def observation(self, features_BH: Tensor) -> Tensor:
        """Return x_{t+1}, given what the output net reads: [B, X]."""
        return self.output.density(features_BH).sample(self.eps_BN, self.temperature)


Step = Callable[[Any, Tensor, Draw], tuple[Tensor, Any]]
"""One step of generation, from the state and x_t: x_{t+1}, and the next state."""


class Network(nn.Module):
    """A network over frames of `x_dim` values, or over `x_dim` words."""

    has_latents: ClassVar[bool] = True
    """Whether there are latents; without them the likelihood is exact."""
    weight_of: ClassVar[Mapping[str, str]] = {"label": "label"}
    """Heads that only one term of the objective moves, and the field of the loss's config that is its weight."""
    inference_embedding: ClassVar[str] = "embed_inference"
    """The name, in checkpoints too, of the inference net's own embedding."""

    output: Output

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        self.noise_dim = noise_size(config, x_dim)
        """Normal numbers that drawing an observation takes."""
        self.embed = embedding(config, x_dim)
        has_own = config.embed_separate and self.has_latents
        self.add_module(self.inference_embedding, embedding(config, x_dim) if has_own else None)
        self._assemble(embedded_size(config, x_dim))
        self.label = label_head(config)
        initialise(self)

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the objective for inputs x, targets y and noise eps.

        `lengths_B` (int64, 0 .. T) says how many steps of each row are real: what reads a row backwards begins at its
        own end. Steps beyond it get terms as well, which mean nothing. Terms are float32, or float64 in a double model.

        Noise for K * B rows draws K trajectories of each sequence, the whole batch K times over, and terms are of as
        many rows. They are for bounds: terms that are in no bound are left out.
        """
        return self._terms(self._pass(x_TBX, y_TBX, lengths_B, eps_TNZ), y_TBX, lengths_B, eps_TNZ)

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Inferred:
        """Return states and latents under the posterior; `eps_TBZ` = 0 gives the posterior mean at every step."""
        found = self._pass(x_TBX, y_TBX, lengths_B, eps_TBZ)
        return Inferred(found.z_TBZ, found.posterior.mean, found.features_TBH, found.state)

    def reconstruct(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Density:
        """Return p(x_{t+1} | ..) for all steps, with z from the posterior and the true observations before it."""
        return self.output.density(self.infer(x_TBX, y_TBX, lengths_B, eps_TBZ).features_TBH)

    def generate(
        self,
        eps_TBZ: Tensor,
        eps_TBN: Tensor,
        *,
        z_TBZ: Tensor | None = None,
        temperature: float = 1.0,
        state: Any = None,
        x_BX: Tensor | None = None,
    ) -> Generated:
        """Draw T observations x_2 .. x_{T+1}: z from the prior, each observation fed back as the next input.

        The noise says how many steps and sequences; `eps_TBZ` scaled is another temperature of the latents, and
        `temperature` that of the observations, 0 for the likeliest. With `z_TBZ` the latents are given instead of
        drawn. Begins at rest with the input `x_BX` (default the mean frame or bits of 0; tokens have none), or goes on
        from a `state` after the observation `x_BX`. Reads weights outside `forward`: for a whole module, not for one
        that ZeRO 3 has partitioned.
        """
        x_BX = self._first_input(eps_TBN) if x_BX is None else x_BX
        latent_TBZ = eps_TBZ if z_TBZ is None else z_TBZ
        state = self._start(x_BX, latent_TBZ[0]) if state is None else state
        drawn, step = [], self._stepping(len(eps_TBN))
        for t, eps_BN in enumerate(eps_TBN):
            draw = Draw(latent_TBZ[t], z_TBZ is not None, self.output, eps_BN, temperature)
            x_BX, state = step(state, x_BX, draw)
            drawn.append(x_BX)
        return Generated(torch.stack(drawn), state)

    def blank(self, steps: int, batch: int) -> Tensor:
        """Return observations of zeros, as the network takes them: [T, B, X], or of tokens [T, B]."""
        if self.config.density == "categorical":
            return torch.zeros(steps, batch, dtype=torch.int64)
        return torch.zeros(steps, batch, self.x_dim)

    def without(self, words: Sequence[int]) -> "Network":
        """Return a copy that gives some words probability 0; the network itself if there are none such."""
        if not words:
            return self
        other = copy.deepcopy(self)
        with torch.no_grad():
            other.output.out.bias[list(words)] = -math.inf
        return other

    def _assemble(self, embedded: int) -> None:
        """Make all parts but the embeddings and the label head, the output net among them.

        `embedded` is the size of an embedded observation. The order is that of checkpoints, of the optimizer's state
        and of the random numbers of the initial weights.
        """
        raise NotImplementedError

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        """Run over a batch, called as `forward`; all that it gives has the rows of the noise."""
        raise NotImplementedError

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> Any:
        """Return the state before the first step of generation, whose input is `x_BX`; `like_BZ` has z's shape."""
        raise NotImplementedError

    def _stepping(self, steps: int) -> Step:
        """Return one step of generation, for a loop of so many."""
        raise NotImplementedError

    def _terms(self, found: Pass, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the bound, and what the label head says where it is asked."""
        label = None if is_many(lengths_B, eps_TNZ) else self.label
        return latent_terms(
            self.output(found.features_TBH, repeat_batch(y_TBX, eps_TNZ)),
            found.prior(),
            found.posterior,
            found.z_TBZ,
            label_logits_BC=None if label is None else label(found.posterior.mean, lengths_B),
        )

    def _embed_for_inference(self, y_TBX: Tensor) -> Tensor:
        own = getattr(self, self.inference_embedding)
        e_TBE: Tensor = (self.embed if own is None else own)(y_TBX)
        return e_TBE

    def _first_input(self, eps_TBN: Tensor) -> Tensor:
        """Return the input that generation begins with by default: the mean frame, or bits of 0."""
        if self.config.density == "categorical":
            raise ValueError("tokens have no default to begin with: give the first ones, as the data begin a sentence")
        return eps_TBN.new_zeros(eps_TBN.shape[1], self.x_dim)
