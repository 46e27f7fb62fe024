"""The settings of all commands. The string under a field is its `--help` text and its documentation."""

from retipair.config.adapters import ExportAdapterConfig
from retipair.config.app import AppConfig, Language
from retipair.config.common import (
    DEFAULT_BASE,
    DEFAULT_PROMPT,
    MAX_AMOUNT,
    Memory,
    Precision,
    SamplerName,
    SystemName,
)
from retipair.config.datasets import CardConfig, DatasetForm, ExportPairsConfig
from retipair.config.evaluation import EvaluateConfig
from retipair.config.generation import GenerateConfig, MergeConfig
from retipair.config.matching import ExportMatchesConfig, Ranges, ReaderForm, UtilityConfig
from retipair.config.pairs import PhantomConfig, PrepareConfig, Register, RegisterConfig
from retipair.config.runs import RunsConfig
from retipair.config.training import BestBy, TrainConfig
from retipair.config.trials import BenchConfig, Benched, DemoConfig

__all__ = [
    "DEFAULT_BASE",
    "DEFAULT_PROMPT",
    "MAX_AMOUNT",
    "AppConfig",
    "BenchConfig",
    "Benched",
    "BestBy",
    "CardConfig",
    "DatasetForm",
    "DemoConfig",
    "EvaluateConfig",
    "ExportAdapterConfig",
    "ExportMatchesConfig",
    "ExportPairsConfig",
    "GenerateConfig",
    "Language",
    "Memory",
    "MergeConfig",
    "PhantomConfig",
    "Precision",
    "PrepareConfig",
    "Ranges",
    "ReaderForm",
    "Register",
    "RegisterConfig",
    "RunsConfig",
    "SamplerName",
    "SystemName",
    "TrainConfig",
    "UtilityConfig",
]
