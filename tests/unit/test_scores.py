"""``llava-api eval score``: small benchmarks whose scores are worked out by hand beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_api.cli.main import main
from llava_api.evaluation.choices import science_letter
from llava_api.evaluation.mmbench import find_letter
from llava_api.evaluation.vqa import llava_answer, soft_accuracy
from llava_api.evaluation.yes_no import mme_answer, pope_says_yes
from tests.support.bulk import run
from tests.support.scripted_api import scripted_api
from training.evaluation_files import write_pope, write_vqa

Score = Callable[..., dict[str, Any]]
SHORT = "\nAnswer the question using a single word or phrase."


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(path: Path, answers: dict[Any, str]) -> Path:
    """As LLaVA's model_vqa_loader.py writes it; a key is a question id, or one with a prompt."""
    rows = []
    for key, text in answers.items():
        question_id, prompt = key if isinstance(key, tuple) else (key, "?")
        rows.append({"question_id": question_id, "prompt": prompt, "text": text, "answer_id": "a", "model_id": "m"})
    return lines(path, *(row | {"metadata": {}} for row in rows))


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Score:
    def run(task: str, answers: Path, annotations: Path, *flags: object) -> dict[str, Any]:
        command = ("eval", "score", task, "--answers-file", answers, "--annotations", annotations, "--json", *flags)
        main([str(part) for part in command])
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return facts

    return run


def refusal(*command: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "score", *map(str, command)])
    assert isinstance(ended.value.code, str)
    return ended.value.code


def pope_files(folder: Path) -> tuple[Path, Path]:
    """POPE's folder and LLaVA's question file, with four random questions and two popular ones."""
    coco = folder / "coco"
    coco.mkdir()
    asked = []
    splits = {"random": (0, ("yes", "yes", "no", "no")), "popular": (100, ("no", "yes"))}
    for split, (first, labels) in splits.items():
        texts = [f"Is there thing {n} in the image?" for n in range(len(labels))]
        rows = zip(texts, labels, strict=True)
        lines(
            coco / f"coco_pope_{split}.json",
            *({"question_id": n, "image": "i.jpg", "text": t, "label": a} for n, (t, a) in enumerate(rows, start=1)),
        )
        asked += [
            {"question_id": first + n, "image": "i.jpg", "text": text + SHORT, "category": split}
            for n, text in enumerate(texts, start=1)
        ]
    return coco, lines(folder / "q.jsonl", *asked)


def test_pope(score: Score, tmp_path: Path) -> None:
    coco, questions = pope_files(tmp_path)
    answers = answered(
        tmp_path / "a.jsonl",
        # random:  right yes, wrong no, wrong yes, right no: TP 1, FN 1, FP 1, TN 1
        {1: "Yes", 2: "No, there is not", 3: "Yes. No", 4: "no", 102: "yes"}
        # popular: wrong yes, right yes:                     TP 1, FN 0, FP 1, TN 0
        | {101: "There is one"},
    )
    facts = score("pope", answers, coco, "--question-file", questions)
    assert facts["questions"] == 6
    assert facts["scores"] == {
        "popular: accuracy": 50,  # 1 / 2
        "popular: precision": 50,  # 1 / 2
        "popular: recall": 100,  # 1 / 1
        "popular: F1": 66.6667,  # 2 * 0.5 * 1 / 1.5
        "popular: yes ratio": 100,
        "random: accuracy": 50,  # 2 / 4
        "random: precision": 50,
        "random: recall": 50,
        "random: F1": 50,
        "random: yes ratio": 50,
        "mean F1": 58.3333,  # (200/3 + 50) / 2
    }
    # Not beside the published mean, which is of three splits.
    assert facts["published"]["llava-1.5-7b"] == {}


def test_a_missing_answer_to_pope_is_wrong_and_moves_no_other(score: Score, tmp_path: Path) -> None:
    coco, questions = pope_files(tmp_path)
    answers = answered(tmp_path / "a.jsonl", {2: "yes", 3: "no", 4: "no", 101: "no", 102: "yes"})
    facts = score("pope", answers, coco, "--question-file", questions)
    assert facts["missing"] == ["1"]
    assert facts["scores"]["random: accuracy"] == 75
    assert facts["scores"]["popular: accuracy"] == 100


def test_one_split_of_pope_with_its_own_ids(score: Score, tmp_path: Path) -> None:
    coco, _ = pope_files(tmp_path)
    answers = answered(tmp_path / "a.jsonl", {1: "no", 2: "yes"})
    assert score("pope", answers, coco / "coco_pope_popular.json")["scores"]["popular: F1"] == 100


@pytest.mark.parametrize(
    ("text", "yes"),
    [("No, it is", False), ("It is not", False), ("Yes. It is not", True), ("NO", True), ("", True), ("no.", False)],
)
def test_popes_reading_of_an_answer_is_llavas(text: str, yes: bool) -> None:
    assert pope_says_yes(text) is yes


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Red Bus.", "red bus"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("man's hat", "man 's hat"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("yes\nno", "yes no"),
    ],
)
def test_answers_are_normalised_as_llava_does(text: str, normal: str) -> None:
    assert llava_answer(text) == normal


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # Leaving out one of m who agree leaves m - 1: (m min(1, (m-1)/3) + (10-m) min(1, m/3)) / 10
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_the_accuracy_of_ten_answers(matches: int, accuracy: float) -> None:
    assert soft_accuracy("a", ["a"] * matches + ["b"] * (10 - matches)) == pytest.approx(accuracy)


def people(*counted: tuple[str, int]) -> list[dict[str, object]]:
    texts = [text for text, count in counted for _ in range(count)]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(texts, start=1)]


def test_vqav2(score: Score, tmp_path: Path) -> None:
    annotations = tmp_path / "v2.json"
    rows = [
        {"question_id": 1, "answer_type": "yes/no", "answers": people(("yes", 8), ("no", 2))},
        {"question_id": 2, "answer_type": "yes/no", "answers": people(("no", 10))},
        {"question_id": 3, "answer_type": "number", "answers": people(("2", 2), ("3", 8))},
        # Punctuation of people's answers goes if they differ, and stays if all are the same.
        {"question_id": 4, "answer_type": "other", "answers": people(("t-shirt", 9), ("shirt", 1))},
        {"question_id": 5, "answer_type": "other", "answers": people(("t-shirt", 10))},
    ]
    annotations.write_text(json.dumps({"info": {}, "annotations": [row | {"question_type": "q"} for row in rows]}))
    texts = {1: "No.", 2: "No", 3: "two", 4: "T-shirt", 5: "T-shirt"}
    facts = score("vqav2", answered(tmp_path / "a.jsonl", texts), annotations)
    assert facts["scores"] == {
        "accuracy": 64,  # (0.6 + 1 + 0.6 + 1 + 0) / 5
        "number": 60,
        "other": 50,
        "yes/no": 80,
    }
    assert facts["published"]["llava-1.5-7b"] == {"accuracy": 78.5}
    assert facts["published"]["llava-1.5-13b"] == {"accuracy": 80.0}


def test_vizwiz(score: Score, tmp_path: Path) -> None:
    annotations = tmp_path / "val.json"
    rows = [
        {"image": "v0.jpg", "question": "?", "answer_type": "unanswerable", "answers": people(("unanswerable", 10))},
        {"image": "v1.jpg", "question": "?", "answer_type": "other", "answers": people(("coca cola", 3), ("coke", 7))},
        # People's answers are not normalised.
        {"image": "v2.jpg", "question": "?", "answer_type": "other", "answers": people(("The cat", 10))},
    ]
    annotations.write_text(json.dumps(rows))
    by_image = {"v0.jpg": "Unanswerable", "v1.jpg": "Coca Cola.", "v2.jpg": "The cat"}
    expected = {"accuracy": 63.3333, "other": 45, "unanswerable": 100}  # (1 + 0.9 + 0) / 3
    assert score("vizwiz", answered(tmp_path / "a.jsonl", by_image), annotations)["scores"] == expected
    questions = lines(tmp_path / "q.jsonl", *({"question_id": n, "image": f"v{n}.jpg", "text": "?"} for n in range(3)))
    numbered = answered(tmp_path / "b.jsonl", dict(enumerate(by_image.values())))
    assert score("vizwiz", numbered, annotations, "--question-file", questions)["scores"] == expected


def test_textvqa(score: Score, tmp_path: Path) -> None:
    annotations = tmp_path / "val.json"
    rows = [
        {"image_id": "i", "question_id": 1, "question": "What brand is it?", "answers": ["Nokia."] * 4 + ["no"] * 6},
        {"image_id": "i", "question_id": 2, "question": "What number?", "answers": ["10"] * 2 + ["ten"] + ["11"] * 7},
        {"image_id": "j", "question_id": 3, "question": "What word?", "answers": ["stop"] * 10},
    ]
    annotations.write_text(json.dumps({"dataset_type": "val", "data": rows}))
    prompts = {
        ("i", f"What brand is it?\nReference OCR token: NOKIA, 10{SHORT}"): "nokia",
        ("i", f"Reference OCR token: NOKIA\nWhat number?{SHORT}"): "Ten",
        ("j", f"What word?{SHORT}"): "go",
    }
    facts = score("textvqa", answered(tmp_path / "a.jsonl", prompts), annotations)
    assert facts["scores"] == {"accuracy": 63.3333}  # (1 + 0.9 + 0) / 3
    unreadable = answered(tmp_path / "b.jsonl", {("i", "What brand is it?"): "nokia"})
    assert "b.jsonl line 1: no question in the prompt" in refusal(
        "textvqa", "--answers-file", unreadable, "--annotations", annotations
    )


def test_gqa(score: Score, tmp_path: Path) -> None:
    annotations = tmp_path / "q.json"
    rows = {
        "201": {"answer": "yes", "isBalanced": True, "types": {"structural": "verify"}},
        "202": {"answer": "left", "isBalanced": True, "types": {"structural": "choose"}},
        "203": {"answer": "girl", "isBalanced": True, "types": {"structural": "query"}},
        "204": {"answer": "car", "isBalanced": True, "types": {"structural": "query"}},
        "205": {"answer": "car", "isBalanced": False, "types": {"structural": "query"}},
    }
    annotations.write_text(json.dumps(rows))
    # A period at the end and large letters do not matter, an article does.
    texts = {"201": "Yes.", "202": "left", "203": "The girl", "204": "Car", "205": "bus"}
    facts = score("gqa", answered(tmp_path / "a.jsonl", texts), annotations)
    assert facts["scores"] == {"accuracy": 75, "binary": 100, "open": 50}
    assert facts["unknown"] == ["205"]


def test_scienceqa(score: Score, tmp_path: Path) -> None:
    problems = {
        "1": {"choices": ["a", "b"], "answer": 0, "image": "image.png", "split": "test"},
        "2": {"choices": ["a", "b"], "answer": 1, "image": "image.png", "split": "test"},
        "3": {"choices": ["a", "b", "c"], "answer": 2, "image": None, "split": "test"},
        "4": {"choices": ["a", "b"], "answer": 1, "image": None, "split": "test"},
        "5": {"choices": ["a", "b"], "answer": 1, "image": None, "split": "val"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3", "4"], "val": ["5"]}))
    texts = {"1": "A", "2": "A. because", "3": "I think so. The answer is C.", "4": "b", "5": "B"}
    answers = answered(tmp_path / "a.jsonl", texts)
    # With an image one of two; in all "A" and "C" of four: a small letter is none.
    assert score("scienceqa", answers, tmp_path)["scores"] == {"with image": 50, "all": 50}
    assert score("scienceqa", answers, tmp_path, "--split", "val")["scores"]["all"] == 100


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. a cow", "B"),
        ("B.", None),
        ("B cow", None),
        (" B", None),
        ("I think so. The answer is D.", "D"),
        ("The answer is D", None),
        ("The answer is A. The answer is C.", None),
        ("", None),
    ],
)
def test_scienceqas_letter_is_read_as_llava_does(text: str, letter: str | None) -> None:
    assert science_letter(text) == letter


MME_QUESTIONS = {
    "0001": (("Is there a dog? Please answer yes or no.", "Yes"), ("Is there a cat? Please answer yes or no.", "No")),
    "0002": (("Is it red?  Please answer yes or no.", "Yes"), ("Is it blue? Please answer yes or no.", "No")),
}


def mme_folder(folder: Path, form: str) -> Path:
    for task in ("existence", "code_reasoning"):
        rows = [(image, *pair) for image, pairs in MME_QUESTIONS.items() for pair in pairs]
        if form == "Your_Results":
            text = "".join(f"{image}.png\t{question}\t{answer}\n" for image, question, answer in rows)
            (folder / f"{task}.txt").write_text(text)
            continue
        into = folder / task / "questions_answers_YN" if task == "existence" else folder / task
        into.mkdir(parents=True)
        for image, pairs in MME_QUESTIONS.items():
            (into / f"{image}.txt").write_text("".join(f"{question}\t{answer}\n" for question, answer in pairs))
    return folder


@pytest.mark.parametrize("form", ["release", "Your_Results"])
def test_mme(score: Score, tmp_path: Path, form: str) -> None:
    folder = mme_folder(tmp_path, form)
    answers = answered(
        tmp_path / "a.jsonl",
        {
            # Both of the first image are right, one of the second: accuracy 3/4, accuracy+ 1/2.
            ("existence/images/0001.jpg", f"Is there a dog?{SHORT}"): "Yes",
            ("existence/images/0001.jpg", f"Is there a cat?{SHORT}"): "No, none",
            ("existence/images/0002.jpg", f"Is it red?{SHORT}"): "yes.",
            ("existence/images/0002.jpg", f"Is it blue?{SHORT}"): "Yes",
            # One of each is right; the other two are neither yes nor no, or missing: accuracy 2/4, accuracy+ 0.
            ("code_reasoning/0001.png", f"Is there a dog?{SHORT}"): "Yes",
            ("code_reasoning/0001.png", f"Is there a cat?{SHORT}"): "maybe",
            ("code_reasoning/0002.png", f"Is it blue?{SHORT}"): "no",
        },
    )
    facts = score("mme", answers, folder)
    points = {"perception": 125, "existence": 125, "cognition": 50, "code_reasoning": 50}
    assert facts["scores"] == points
    assert facts["missing"] == ["code_reasoning 0002 Is it red?"]


@pytest.mark.parametrize(
    ("text", "answer"), [("Yes", "yes"), (" no", "no"), ("I say yes", "other"), ("Not", "no"), ("", "other")]
)
def test_mme_looks_at_four_letters(text: str, answer: str) -> None:
    assert mme_answer(text) == answer


def test_mmbench(score: Score, tmp_path: Path) -> None:
    annotations = tmp_path / "mmbench_dev_20230712.tsv"
    rows = [
        ("index", "question", "A", "B", "C", "D", "answer", "image"),
        ("1", '"two\nlines"', "cat", "dog", "", "", "A", "x" * 200_000),
        ("1000001", "q", "dog", "cat", "", "", "B", "x"),
        ("2", "q", "red", "green", "blue", "nan", "C", "x"),
        ("1000002", "q", "blue", "red", "green", "nan", "A", "x"),
        ("2000002", "q", "green", "blue", "red", "nan", "B", "x"),
    ]
    annotations.write_text("".join("\t".join(row) + "\n" for row in rows))
    # Question 1 is right in both orders, question 2 in two of three.
    texts = {1: "A", 1_000_001: "It is the cat", 2: "C. blue", 1_000_002: "(A)", 2_000_002: "C"}
    facts = score("mmbench", answered(tmp_path / "a.jsonl", texts), annotations)
    assert facts["scores"] == {"CircularEval": 50, "each row": 80}
    assert facts["published"]["llava-1.5-13b"] == {"CircularEval": 67.7}
    annotations.write_text(annotations.read_text() + "three\tq\n")
    bad = refusal("mmbench", "--answers-file", tmp_path / "a.jsonl", "--annotations", annotations)
    assert "mmbench_dev_20230712.tsv line 8: no row of MMBench" in bad


def test_all_rounds_of_mmbench(score: Score, tmp_path: Path) -> None:
    """LLaVA's --all-rounds: round 1 of cat, dog, bird shows A. dog, B. bird, C. cat."""
    annotations = tmp_path / "mmbench_dev_20230712.tsv"
    rows = [
        ("index", "question", "A", "B", "C", "D", "answer"),
        ("7", "q", "cat", "dog", "bird", "", "A"),
        ("8", "q", "red", "green", "nan", "nan", "B"),
    ]
    annotations.write_text("".join("\t".join(row) + "\n" for row in rows))
    texts = {(7, 0): "A", (7, 1): "C", (7, 2): "It is the cat", (8, 0): "B", (8, 1): "B. red"}
    rounds = [
        {"question_id": index, "round_id": turn, "prompt": "?", "text": text} for (index, turn), text in texts.items()
    ]
    facts = score("mmbench", lines(tmp_path / "a.jsonl", *rounds), annotations)
    assert facts["questions"] == 5
    # Question 8's green is A in its second round. 1 of 2 questions, 4 of 5 rounds.
    assert facts["scores"] == {"CircularEval": 50, "each row": 80}
    facts = score("mmbench", lines(tmp_path / "b.jsonl", *rounds[1:]), annotations)
    assert facts["missing"] == ["7"]
    assert facts["scores"]["CircularEval"] == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("The answer is (B).", "B"),
        ("A or B", None),
        ("A rabbit is in it", "B"),
        ("a teddy bear", "A"),
        ("a teddy bear and a rabbit", None),
        ("Spider", None),
    ],
)
def test_mmbenchs_letter(text: str, letter: str | None) -> None:
    assert find_letter(text, ["teddy bear", "rabbit", "cat", "dog"]) == letter


def test_seed(score: Score, tmp_path: Path) -> None:
    annotations = tmp_path / "SEED-Bench.json"
    rows = [
        {"question_id": "101", "answer": "A", "data_type": "image", "question_type_id": 1},
        {"question_id": "102", "answer": "B", "data_type": "image", "question_type_id": 1},
        {"question_id": "103", "answer": "C", "data_type": "image", "question_type_id": 2},
        {"question_id": "v104", "answer": "D", "data_type": "video", "question_type_id": 10},
    ]
    kinds = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    annotations.write_text(json.dumps({"questions": rows, "question_type": kinds}))
    texts = {101: "A", 102: "B. a dog", 103: "C", "v104": "D"}
    assert score("seed", answered(tmp_path / "a.jsonl", texts), annotations)["scores"] == {
        "accuracy": 75,
        "image": 66.6667,
        "video": 100,
        "Action Recognition": 100,
        "Instance Identity": 100,
        "Scene Understanding": 50,
    }


@pytest.fixture
def small_gqa(tmp_path: Path) -> Path:
    path = tmp_path / "gqa.json"
    rows = {str(n): {"answer": "yes", "isBalanced": True, "types": {"structural": "verify"}} for n in range(1, 11)}
    path.write_text(json.dumps(rows))
    return path


def test_the_table_counts_and_names_missing_answers(
    small_gqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks = [answered(tmp_path / f"{n}.jsonl", {n: "yes", "x" * n: "no"}) for n in (1, 2)]
    main(["eval", "score", "gqa", "--answers-file", *map(str, chunks), "--annotations", str(small_gqa)])
    assert capsys.readouterr().out.splitlines() == [
        "gqa, 10 questions",
        "             yours    1.5-7B   1.5-13B",
        "accuracy     20.00      62.0      63.3",
        "binary       20.00",
        "1.5-7B and 1.5-13B: published (LLaVA-1.5, arXiv 2310.03744).",
        "8 questions have no answer and count as wrong: 3, 4, 5, 6, 7, ...",
        "2 answers are to questions that are not in the annotations: x, xx",
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question_id": 1, "text": ', "a.jsonl line 2: Invalid JSON"),
        ('{"text": "yes"}', "a.jsonl line 2: question_id"),
        ('{"question_id": 2, "text": null}', "a.jsonl line 2: text: Input should be a valid string"),
        ('{"question_id": "1", "text": "no"}', "a.jsonl line 2: a second answer to question 1, which"),
    ],
)
def test_a_bad_line_of_answers_is_named(small_gqa: Path, tmp_path: Path, line: str, complaint: str) -> None:
    answers = answered(tmp_path / "a.jsonl", {1: "yes"})
    answers.write_text(answers.read_text() + line + "\n")
    assert complaint in refusal("gqa", "--answers-file", answers, "--annotations", small_gqa)


def test_a_wrong_file_is_refused_in_a_sentence(small_gqa: Path, tmp_path: Path) -> None:
    answers = answered(tmp_path / "a.jsonl", {"x9": "yes"})
    of_gqa = ("gqa", "--answers-file", answers, "--annotations", small_gqa)
    assert "has none of the questions that are answered, such as x9" in refusal(*of_gqa)
    of_vqa = ("vqav2", "--answers-file", answers, "--annotations", small_gqa)
    assert "gqa.json: annotations: Field required" in refusal(*of_vqa)
    missing = tmp_path / "no.json"
    assert f"cannot read {missing}: No such file" in refusal(*of_gqa[:-1], missing)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "there is no answer in it" in refusal("gqa", "--answers-file", empty, "--annotations", small_gqa)
    assert "no columns index" in refusal("mmbench", *of_gqa[1:])
    assert "no task of MME" in refusal("mme", *of_gqa[1:-1], tmp_path)
    assert "coco_pope_random.json" in refusal("pope", *of_gqa[1:-1], tmp_path)


def test_popes_splits_need_the_question_file_that_was_run(tmp_path: Path) -> None:
    coco, questions = pope_files(tmp_path)
    answers = answered(tmp_path / "a.jsonl", {1: "yes"})
    command = ("pope", "--answers-file", answers, "--annotations", coco)
    assert "by --question-file: it says which split" in refusal(*command)
    (coco / "coco_pope_random.json").write_text('{"question_id": 1, "text": "Is there a car?", "label": "no"}\n')
    assert "has not the 4 questions of category random" in refusal(*command, "--question-file", questions)


def test_annotations_without_answers_are_a_test_split(tmp_path: Path) -> None:
    annotations = tmp_path / "test.json"
    annotations.write_text(json.dumps([{"image": "v0.jpg", "question": "?"}]))
    answers = answered(tmp_path / "a.jsonl", {"v0.jpg": "yes"})
    assert "use the val split" in refusal("vizwiz", "--answers-file", answers, "--annotations", annotations)


def test_the_drawn_questions_are_in_both_formats(score: Score, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_pope(tmp_path, 8)
    write_vqa(tmp_path, 8)
    files = [tmp_path / name for name in ("coco_pope_random.json", "vqa_questions.jsonl")]
    asked = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert all((tmp_path / "images" / question["image"]).is_file() for question in asked)
    right = answered(tmp_path / "pope.jsonl", {question["question_id"]: question["label"] for question in asked[:8]})
    assert score("pope", right, tmp_path / "coco_pope_random.json")["scores"]["random: accuracy"] == 100
    annotations = tmp_path / "vqa_annotations.json"
    rows = json.loads(annotations.read_text())["annotations"]
    # As a demo checkpoint answers: with a period, and counts as words.
    words = {"0": "None", "1": "One", "2": "Two", "3": "Three"}
    texts = {row["question_id"]: words.get(row["answers"][0]["answer"], row["answers"][0]["answer"]) for row in rows}
    right = answered(tmp_path / "vqa.jsonl", {key: f"{text}." for key, text in texts.items()})
    assert score("vqav2", right, annotations)["scores"]["accuracy"] == 100


def test_the_chunks_that_eval_writes_are_scored(score: Score, tmp_path: Path) -> None:
    labels = ["yes", "no", "yes", "yes"]
    rows = [{"question_id": n, "text": "Is it?", "label": label} for n, label in enumerate(labels)]
    questions = lines(tmp_path / "coco_pope_random.json", *rows)
    chunks = [tmp_path / f"2_{n}.jsonl" for n in range(2)]
    with scripted_api() as api:
        for n, chunk in enumerate(chunks):
            files = ("--question-file", questions, "--answers-file", chunk)
            assert run(api.base_url, "eval", *files, "--num-chunks", "2", "--chunk-idx", str(n))[0] == 0
    # The server answers "A red circle. Is it?", in which there is no no.
    facts = score("pope", chunks[0], questions, "--answers-file", *chunks)
    assert (facts["missing"], facts["scores"]["random: accuracy"]) == ([], 75)
