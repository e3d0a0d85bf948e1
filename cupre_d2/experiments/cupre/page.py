"""An experiment's page in Markdown, and its figures as PNG."""

from cupre_d2.data import get_records
from cupre_d2.experiments import pictures
from cupre_d2.experiments.cupre import figures, series, tables
from cupre_d2.experiments.cupre.outcome import Outcome

PAIRED = (
    "Mask AP less that of a control, paired by fraction and seed (coco_long: COCO pre-training with as many COCO iterations "
    "in all as cupre gets, the control that the paper lacks)."
)
EPOCHS = (
    "While fine-tuning: mask AP on the validation images, the mean over seeds (thick) and each seed (thin). A run that was "
    "evaluated at its end alone is a dot."
)
FRACTIONS = "By the number of annotated images: the mean over seeds (thick) and each seed (thin)."
ABLATION = (
    "What the parts of CUPre are worth, with the fewest annotations: cocopp has MoCo's backbone and COCO's neck and head, "
    "cupremm has no L2-SP, cuprepp has it in fine-tuning too. Mean, standard deviation over seeds, and each seed."
)
RATES = "Fine-tuning's learning rate was chosen an arm and fraction on the validation images, with the first seed."
ARMS = (
    "The same test images as each arm segments them, with the fewest annotations and the first seed; they were chosen by "
    "their number of cells alone."
)


def title(outcome: Outcome) -> str:
    return f"{outcome.experiment.dataset}: arms of CUPre"


def write_page(outcome: Outcome) -> None:
    """RESULTS.md and its figures.

    Raises:
        DatasetError: the test images or their detections cannot be used.
    """
    rows, name = outcome.rows, outcome.results.name
    figures.draw_fractions(series.against_fractions(rows), outcome.beside(".png"))
    figures.draw_epochs(series.against_epochs(rows), outcome.beside("_epochs.png"))
    parts = [
        *outcome.header(title(outcome)),
        "AP in percent on the test images, which were read once; mean ± standard deviation over seeds.",
        tables.headline(rows).markdown(),
        PAIRED,
        tables.differences(rows).markdown(),
        FRACTIONS,
        f"![mask AP against the annotated share]({name}.png)",
        EPOCHS,
        f"![mask AP against epochs]({name}_epochs.png)",
    ]
    if bars := series.ablation(rows):
        figures.draw_ablation(bars, outcome.beside("_ablation.png"))
        parts += [ABLATION, f"![ablation]({name}_ablation.png)"]
    tests = outcome.first_tests()
    files = {arm: test.detections for arm, test in tests.items()}
    dataset, use_cats = outcome.evaluated_on()
    pictures.compare(files, dataset, use_cats, pictures.choose(get_records(dataset)), outcome.beside("_arms.jpg"))
    parts += [RATES, tables.rates(rows).markdown(), ARMS, f"![arms]({name}_arms.jpg)"]
    outcome.beside(".md").write_text("\n\n".join(parts) + "\n")
