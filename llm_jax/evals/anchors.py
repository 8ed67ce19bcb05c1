"""Published scores to hold a model's own against: landmarks, no baselines, as prompts differ from place to place."""

from collections.abc import Mapping

# task -> metric -> name with its source -> score
ANCHORS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    'hellaswag': {'acc_norm': {'people (Zellers et al. 2019)': 0.956}},
    'winogrande': {'acc': {'people (Sakaguchi et al. 2019)': 0.94}},
    'piqa': {'acc_norm': {'people (Bisk et al. 2019)': 0.949}},
    'openbookqa': {'acc_norm': {'people (Mihaylov et al. 2018)': 0.917}},
    'boolq': {'acc': {'people (Clark et al. 2019)': 0.90}},
    'mmlu': {'acc': {'experts (Hendrycks et al. 2020)': 0.898, 'GPT-3 175B (the same)': 0.439}},
    'lambada': {'acc': {'GPT-2 124M by lm-eval': 0.3256}},
    'humaneval': {'pass@1': {'Codex 12B (Chen et al. 2021)': 0.288}},
    'blimp': {'acc': {'people (Warstadt et al. 2019)': 0.886}},
}
