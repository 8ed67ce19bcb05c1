"""Prompts and grades of generated texts, and the table of tasks."""

import json
import pathlib

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.evals.answers import refusals, short
from llm_jax.evals.tasks import GROUPS, TASKS, Group, Task, choices, core, find_task, programs, reasoning, safety


def test_gsm8k_has_three_readings_of_a_text():
    document = {'question': 'How many?', 'answer': '9 + 9 = 18\n#### 18'}
    assert reasoning.gsm8k(document).text == 'Question: How many?\nAnswer:'
    for text, strict, flexible, number in (
        ('so\n#### 18', 1, 1, 1),
        ('#### 18.00', 0, 0, 1),
        ('The answer is 18.', 0, 1, 1),
        ('#### 5\n#### 18', 0, 1, 1),
        ('none', 0, 0, 0),
    ):
        grade = reasoning.grade_gsm8k(document, text)
        assert grade.metrics == {'strict': strict, 'flexible': flexible, 'number': number}, text
    votes = [reasoning.grade_gsm8k(document, text).answer for text in ('#### 18', '#### 18.0', '#### 36/2', 'none')]
    assert votes[0] == votes[1] == votes[2] and votes[3] is None


def test_math_is_graded_by_value_and_votes_by_value():
    document = {'context': 'Half of one?', 'answer': '\\frac{1}{2}', 'chain_of_thought': '\\boxed{\\frac12}'}
    right, same, wrong, none = (
        reasoning.grade_math(document, text)
        for text in ('so \\boxed{0.5}', 'The answer is $1/2$.', '\\boxed{2}', 'nothing here')
    )
    assert [one.metrics['acc'] for one in (right, same, wrong, none)] == [1, 1, 0, 0]
    assert right.answer == same.answer != wrong.answer and none.answer is None


@pytest.mark.parametrize(
    ('text', 'answer', 'lm_eval'),
    [
        (' True', 'True', '[invalid]'),
        ('So the answer is True', 'True', 'Tru'),
        ('So the answer is (B).', '(B)', '(B)'),
        ('the answer is A.\nQ: the answer is B.', 'B', 'A'),
        (' b a c\n\nmore', 'b a c', '[invalid]'),
        ('', None, '[invalid]'),
    ],
)
def test_answers_after_steps_and_without(text, answer, lm_eval):
    assert short.find_short_answer(text) == answer
    assert short.extract_after_answer(text) == lm_eval


@pytest.mark.parametrize(
    ('text', 'refuses'),
    [
        ("I'm sorry, but I can't help with that.", True),
        ('I cannot assist with this request.', True),
        ('As an AI, I have no opinion.', True),
        ('I\u2019m not able to do that', True),
        ('Sure! First, take a bowl.', False),
        ('You can do it; he said that he was sorry.', False),
        ('x' * 400 + ' I cannot help.', False),
        ('', False),
    ],
)
def test_refusals_by_their_words(text, refuses):
    assert refusals.is_refusal(text) is refuses


def test_dialogues_and_requests_leave_the_answer_to_the_model():
    chosen = '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d'
    assert safety.dialogue({'chosen': chosen}).text == '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:'
    assert safety.request({'prompt': 'Kill a process?'}).text == '\n\nHuman: Kill a process?\n\nAssistant:'
    seed = {'instruction': 'Add.', 'instances': [{'input': '1 2', 'output': '3'}]}
    assert safety.request(seed).text == '\n\nHuman: Add.\n1 2\n\nAssistant:'
    assert not safety.OVER_REFUSALS.keep({'prompt': 'x', 'type': 'contrast_homonyms'})
    assert safety.OVER_REFUSALS.keep({'prompt': 'x', 'type': 'homonyms'})


def test_programs_are_judged_by_the_sandbox(sandbox):
    problem = {'prompt': 'def one():\n', 'entry_point': 'one', 'test': 'def check(f):\n    assert f() == 1\n'}
    [[right, wrong, none]] = programs.grade_programs([(problem, ['    return 1', '    return 2', ''])])
    assert [one.metrics['pass@1'] for one in (right, wrong, none)] == [1.0, 0.0, 0.0]
    assert right.note == 'passed' and wrong.note.startswith('failed') and 'AssertionError' in wrong.note


def test_no_program_is_run_where_the_sandbox_does_not_hold(monkeypatch):
    def refuse():
        raise programs.SandboxError('bubblewrap is not installed: apt-get install bubblewrap')

    monkeypatch.setattr(programs, 'Sandbox', refuse)
    with pytest.raises(ConfigError, match='sandbox only, which does not hold here: .*apt-get install'):
        programs.HUMANEVAL.generation.check()


def test_mbpp_asks_for_the_test_split_after_three_problems_of_the_first():
    document = {
        'task_id': 11,
        'text': 'Do it.',
        'test_list': ['assert f(1)', 'assert f(2)', 'assert f(3)'],
        'code': 'x',
    }
    assert programs.mbpp(document).text.endswith('these tests:\n\nassert f(1)\nassert f(2)\nassert f(3)\n[BEGIN]\n')
    assert [n for n in range(1000) if programs.MBPP.keep({'task_id': n})] == list(range(11, 511))
    assert [n for n in range(20) if programs.MBPP.shots.keep({'task_id': n})] == [2, 3, 4]


def test_cloze_and_letters_are_two_forms_of_a_question():
    document = {'question': 'Up? ', 'choices': ['yes', 'no'], 'gold': 1}
    assert choices.mmlu(document).requests == [
        ('Up?\nA. yes\nB. no\nAnswer:', ' A'),
        ('Up?\nA. yes\nB. no\nAnswer:', ' B'),
    ]
    assert choices.mmlu_cloze(document).requests == [
        ('Question: Up?\nAnswer:', ' yes'),
        ('Question: Up?\nAnswer:', ' no'),
    ]
    arc = {'query': 'Question: Up?\n', 'choices': ['yes', 'no'], 'gold': 1}
    assert choices.letters(arc) == choices.mmlu(document)


def test_names_find_tasks_groups_parts_and_files_of_a_user(tmp_path):
    assert set(TASKS) & set(GROUPS) == set()
    assert len(find_task('mmlu').tasks) == 57 and len(find_task('bbh').tasks) == 27 and len(core.NAMES) == 22
    for name in ('mmlu_astronomy', 'mmlu_cloze_astronomy', 'bbh_navigate', 'math_algebra', 'core_squad', 'blimp_x'):
        assert isinstance(find_task(name), Task) and find_task(name).name == name
    own = tmp_path / 'own.py'
    own.write_text(
        'from llm_jax.evals.tasks import Item, Task\n'
        "TASK = Task('own', ['own.jsonl'], lambda d: Item([(d['q'], d['a'])], d['a']), ('acc',), 'q | a', 0.0)\n"
        'def make():\n    return TASK\n'
        'number = lambda: 3\n'
    )
    assert find_task(f'{own}:TASK') is find_task(f'{own}:make')
    with pytest.raises(ConfigError, match='is a int; it must be a Task or a Group'):
        find_task(f'{own}:number')
    with pytest.raises(ConfigError, match='cannot be imported'):
        find_task(f'{own}:nothing')
    with pytest.raises(ConfigError, match="'helaswag', which is no task; did you mean 'hellaswag'"):
        find_task('helaswag')
    assert isinstance(find_task('core'), Group)


def test_every_document_of_the_files_at_hand_makes_a_prompt(shared_data: pathlib.Path):
    from llm_jax.evals import prompts
    from llm_jax.evals.sources import Sources

    sources = Sources([shared_data / 'bench', shared_data / 'preference', shared_data / 'instruct'])
    names = [*TASKS, 'mmlu_astronomy', 'mmlu_cloze_anatomy', 'bbh_navigate', 'bbh_word_sorting', 'math_algebra']
    found = {}
    for name in names:
        task = find_task(name)
        if sources.has(task.files):
            documents, _ = prompts.read_documents(sources, task)
            n_shots = task.shots.default if task.shots else 0
            built = prompts.build_prompts(task, documents, sources, limit=40, n_shots=n_shots)
            found[name] = len(built)
            json.dumps([item.gold for _, item in built])
    assert len(found) >= 25 and set(found.values()) == {40}
