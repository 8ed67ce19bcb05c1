"""GSM8K, MATH and BIG-Bench Hard: texts that the model writes, and the answers in them."""

import dataclasses
from fractions import Fraction

from llm_jax.evals.answers import latex, numbers, short
from llm_jax.evals.tasks.task import Document, Generation, Grade, Prompt, Shots, Task, grade_each

_STEPS = 'more than a few hundred tokens of reasoning are cut at max_new_tokens'


def gsm8k(document: Document) -> Prompt:
    return Prompt(f'Question: {document["question"]}\nAnswer:', document['answer'])


def grade_gsm8k(document: Document, text: str) -> Grade:
    gold, found = document['answer'], numbers.final_number(text)
    above, below = found if isinstance(found, tuple) else (found, 1)
    scores = {
        'strict': float(numbers.grade_strict(text, gold)),
        'flexible': float(numbers.grade_flexible(text, gold)),
        'number': float(numbers.grade_number(text, gold)),
    }
    return Grade(scores, None if above is None else Fraction(above) / Fraction(below))


def math(document: Document) -> Prompt:
    return Prompt(f'Problem:\n{document["context"]}\n\nSolution:', document['answer'])


def grade_math(document: Document, text: str) -> Grade:
    answer = latex.find_answer(text)
    if answer is None:
        return Grade({'acc': 0.0})
    return Grade({'acc': float(latex.is_equal(answer, document['answer']))}, latex.normal_form(answer), answer)


def bbh(document: Document) -> Prompt:
    return Prompt(f'Q: {document["input"]}\nA:', document['target'])


def grade_bbh(document: Document, text: str) -> Grade:
    gold, answer = document['target'], short.find_short_answer(text)
    scores = {'acc': float(answer == gold), 'after_answer': float(short.extract_after_answer(text) == gold)}
    return Grade(scores, answer)


def _with_steps(document: Document) -> str:
    return f'{gsm8k(document).text} {document["answer"]}\n\n'


def _with_solution(document: Document) -> str:
    return f'{math(document).text} {document["chain_of_thought"]}\n\n'


def _with_target(document: Document) -> str:
    return f'{bbh(document).text} {document["target"]}\n\n'


GSM8K = Task(
    'gsm8k', ['gsm8k_test.jsonl.gz'], gsm8k, ('strict', 'flexible', 'number'),
    'Question: ... Answer: (solution, #### number)', 0.0,
    shots=Shots(_with_steps, ['gsm8k_train.jsonl.gz'], default=5),
    generation=Generation(
        ['Question:', '</s>', '<|im_end|>'], 256, grade_each(grade_gsm8k), passing='number', votes=True
    ),
    note=f'strict and flexible are lm-eval\'s filters; number is the final one as a reader finds it; {_STEPS}',
)  # fmt: skip
MATH = Task(
    'math', ['math_test.jsonl.gz'], math, ('acc',), 'Problem: ... Solution: (steps, \\boxed{answer})', 0.0,
    shots=Shots(_with_solution, default=0),
    generation=Generation(['Problem:'], 512, grade_each(grade_math), passing='acc', votes=True),
    note=f'answers are compared by value, exactly; {_STEPS}',
)  # fmt: skip
MATH_CATEGORIES = (
    'algebra', 'counting_and_probability', 'geometry', 'intermediate_algebra', 'number_theory', 'prealgebra',
    'precalculus',
)  # fmt: skip

_ORDER = 'A logical deduction task which requires deducing the order of a sequence of objects.'
_SWAPS = (
    'A task requiring determining the final positions of a set of objects given their initial positions and a '
    'description of a sequence of swaps.'
)
# What stands before the questions of each, as its authors gave it.
BBH_HEADINGS = {
    'boolean_expressions': 'Evaluate the result of a random Boolean expression.',
    'causal_judgement': 'Answer questions about causal attribution.',
    'date_understanding': 'Infer the date from context.',
    'disambiguation_qa': 'Clarify the meaning of sentences with ambiguous pronouns.',
    'dyck_languages': 'Correctly close a Dyck-n word.',
    'formal_fallacies': 'Distinguish deductively valid arguments from formal fallacies.',
    'geometric_shapes': 'Name geometric shapes from their SVG paths.',
    'hyperbaton': 'Order adjectives correctly in English sentences.',
    'logical_deduction_five_objects': _ORDER,
    'logical_deduction_seven_objects': _ORDER,
    'logical_deduction_three_objects': _ORDER,
    'movie_recommendation': 'Recommend movies similar to the given list of movies.',
    'multistep_arithmetic_two': 'Solve multi-step arithmetic problems.',
    'navigate': 'Given a series of navigation instructions, determine whether one would end up back at the starting '
                'point.',
    'object_counting': 'Questions that involve enumerating objects and asking the model to count them.',
    'penguins_in_a_table': 'Answer questions about a table of penguins and their attributes.',
    'reasoning_about_colored_objects': 'Answer extremely simple questions about the colors of objects on a surface.',
    'ruin_names': "Select the humorous edit that 'ruins' the input movie or musical artist name.",
    'salient_translation_error_detection': 'Detect the type of error in an English translation of a German source '
                                           'sentence.',
    'snarks': 'Determine which of two sentences is sarcastic.',
    'sports_understanding': 'Determine whether an artificially constructed sentence relating to sports is plausible '
                            'or not.',
    'temporal_sequences': 'Task description: Answer questions about which times certain events could have occurred.',
    'tracking_shuffled_objects_five_objects': _SWAPS,
    'tracking_shuffled_objects_seven_objects': _SWAPS,
    'tracking_shuffled_objects_three_objects': _SWAPS,
    'web_of_lies': 'Evaluate a random boolean function expressed as a word problem.',
    'word_sorting': 'Sort a list of words.',
}  # fmt: skip


def math_category(category: str) -> Task:
    """MATH's problems of one category."""
    return dataclasses.replace(MATH, name=f'math_{category}', keep=lambda document: document['category'] == category)


def bbh_task(part: str) -> Task:
    """One task of BIG-Bench Hard, answered directly or after steps."""
    return Task(
        f'bbh_{part}', [f'bbh_{part}.json', f'{part}.json'], bbh, ('acc', 'after_answer'),
        'heading, Q: ... A: (answer, or steps and the answer)', None,
        heading=f'{BBH_HEADINGS[part]}\n\n', shots=Shots(_with_target, default=3),
        generation=Generation(['</s>', 'Q:', '\n\n'], 256, grade_each(grade_bbh), passing='acc', votes=True),
        note='examples have answers without steps; after_answer is lm-eval\'s filter, which drops the last character',
    )  # fmt: skip
