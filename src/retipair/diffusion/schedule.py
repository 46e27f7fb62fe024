"""Define the noise schedule of a base: how noise is added to latents, and what the network predicts."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

_MIN_ALPHA = 1e-6
"""Lower limit of alpha_t as a divisor. Without it, gradients would be NaN where alpha_t is 0 (zero terminal SNR)."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise schedule of a DDPM: x_t = alpha_t x_0 + sigma_t noise, alpha_t^2 + sigma_t^2 = 1 (Ho et al. 2020, eq. 4).

    alphas_cumprod: alpha_t^2 of the T timesteps, (T,) float32.
    prediction_type: "epsilon" if the network predicts the noise, "v_prediction" if it predicts
    v = alpha_t noise - sigma_t x_0 (Salimans & Ho 2022, sec. 4).
    In all methods, clean latents (x_0), noisy latents (x_t), noise and predictions are (B, C, h, w) float32; t contains
    the timestep of each sample, (B,) int64 in [0, T).
    """

    alphas_cumprod: torch.Tensor
    prediction_type: Literal["epsilon", "v_prediction"]

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> "NoiseSchedule":
        """Create the noise schedule from the alphas_cumprod and the prediction type of a diffusers scheduler."""
        kind = scheduler.config.prediction_type
        assert kind in ("epsilon", "v_prediction"), kind
        return cls(scheduler.alphas_cumprod, kind)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents x_t for the clean latents x_0."""
        alpha, sigma = self._alpha_sigma(t)
        return alpha * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the correct prediction: the noise or v, by the prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self._alpha_sigma(t)
        return alpha * noise - sigma * latents

    def clean_latents(self, prediction: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the clean latents computed from a prediction for the noisy latents x_t.

        They are (x_t - sigma_t noise) / alpha_t for noise prediction, and alpha_t x_t - sigma_t v for v-prediction.
        """
        alpha, sigma = self._alpha_sigma(t)
        if self.prediction_type == "v_prediction":
            return alpha * noisy - sigma * prediction
        return (noisy - sigma * prediction) / alpha.clamp(min=_MIN_ALPHA)

    def prediction(self, clean: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the prediction that gives the clean latents `clean` for the noisy latents x_t, if sigma_t is above 0.

        This is the inverse of `clean_latents`.
        """
        alpha, sigma = self._alpha_sigma(t)
        if self.prediction_type == "v_prediction":
            return (alpha * noisy - clean) / sigma
        return (noisy - alpha * clean) / sigma

    def implies_clean(self, t: torch.Tensor) -> torch.Tensor:
        """Return for each sample whether clean latents can be computed from a prediction, (B,) bool.

        It is false only for noise prediction at an SNR of 0 (Lin et al. 2023, arXiv 2305.08891, sec. 3.2).
        """
        if self.prediction_type == "v_prediction":
            return torch.ones_like(t, dtype=torch.bool)
        return self._alpha_squared(t) > 0

    def min_snr_weight(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return the min-SNR weight of the loss of each sample, (B,) (Hang et al. 2023, arXiv 2303.09556).

        It is min(SNR, gamma) / SNR for noise prediction, and min(SNR, gamma) / (SNR + 1) for v-prediction.
        """
        alpha_squared = self._alpha_squared(t)
        snr = alpha_squared / (1 - alpha_squared)
        if self.prediction_type == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        return (gamma / snr).clamp(max=1)  # min(SNR, gamma) / SNR, but 1 at an SNR of 0

    def _alpha_squared(self, t: torch.Tensor) -> torch.Tensor:
        return self.alphas_cumprod.to(t.device)[t]

    def _alpha_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha_t and sigma_t of each sample, (B, 1, 1, 1) each."""
        alpha_squared = self._alpha_squared(t).view(-1, 1, 1, 1)
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
