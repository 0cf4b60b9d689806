"""What the gallery says of each study: words, and no figure that is not in a record."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Page:
    """What is said of a study, beside what was recorded of it.

    ``{record|variant|heading}`` in a text becomes that cell of the study's table; without a heading, the first metric.

    Attributes:
        title: of its section.
        records: names of its records, in the order of the page.
        why: what happens, and what cures it.
        look: what to look at in TensorBoard.
        not_held: what one often hears, and what was seen instead; left out where it speaks of a missing record.
    """

    title: str
    records: tuple[str, ...]
    why: str
    look: str = ""
    not_held: tuple[str, ...] = field(default=())


PAGES = [
    Page(
        "A language model that explodes",
        ("lstm_language_model", "lstm_policies"),
        "Learning rate 20 with plain SGD and the initialization are those of PyTorch's own word_language_model "
        "example. Without clipping the loss spikes within the first steps and the state of the LSTM saturates. "
        "With clipping it learns.",
        "`grad_norm_total/pre_clip` beside `post_clip` and `threshold`, and `gradguard/clipped_fraction`: a fixed "
        "norm clips rarely, AutoClip at the 10th percentile nearly always, and both learn.",
        (
            "It never ends in NaN: saturation keeps an LSTM finite. The failure is spikes and divergence "
            "({lstm_language_model|none|diverged} runs end worse than a model without memory).",
            "How badly it fails is a matter of the seed: {lstm_language_model|none} bits per character, against "
            "{lstm_language_model|norm} with a fixed norm.",
            "An adaptive threshold is no better here than the right fixed norm "
            "(ZClip {lstm_language_model|zclip}, AutoClip {lstm_language_model|autoclip}). What ZClip gains is that "
            "it clips {lstm_language_model|zclip|clip rate} of the steps, not "
            "{lstm_language_model|norm|clip rate}, and that nobody had to find the norm.",
        ),
    ),
    Page(
        "A CNN of 20 layers that does not learn",
        ("cnn20", "cnn20_depth"),
        "He et al.'s 6n + 2 layout and optimizer, with PyTorch's default initialization and no normalization: the "
        "loss stays at ln 10, for the gradient of the first convolution is many decades below that of the last.",
        "The *Gradient flow* tab, with `plain` and a cured run side by side: a slope from top to bottom against "
        "an even field.",
        (
            "He initialization alone is no cure at this learning rate ({cnn20|He}; {cnn20|He|diverged} runs fail). "
            "Batch normalization alone is ({cnn20|BatchNorm}), and so are residual connections alone "
            "({cnn20|residual}).",
            "Two cures are not always better than one: He initialization and residual connections without "
            "normalization fail in {cnn20|He + residual|diverged} runs.",
            "An even profile is no proof of health: with He initialization it is nearly flat "
            "({cnn20|He|decades a layer} decades a layer; plain {cnn20|plain|decades a layer}), and the network does "
            "not learn.",
            "Before depth decides, the seed does: at this rate "
            "{cnn20_depth|6 layers, plain|diverged} runs fail with 6 layers already, "
            "{cnn20_depth|8 layers, plain|diverged} with 8, and "
            "{cnn20_depth|10 layers, plain|diverged} with 10.",
        ),
    ),
    Page(
        "A GAN that ends in NaN",
        ("gan", "gan_dense"),
        "Two optimizers pull against each other, with manual optimization and one clipping policy each. At this "
        "rate the run is over after a handful of steps. Careful initialization does not save it, clipping does "
        "not save a careless initialization: it takes both. The guard alone does not make it learn, but it stops "
        "the run with finite weights.",
        "`grad_norm_total/pre_clip/opt0` (discriminator) and `/opt1` (generator): which one starts?",
        (
            "SGD at 0.4 is high for a GAN; Adam at 2e-4 is the field's standard: try `--optimizer adam`.",
            "A threshold that is learned from the history alone learns the explosion, which begins in the first "
            "steps: ZClip alone ends at a Fréchet distance of {gan|Xavier, ZClip alone}, with a ceiling at "
            "{gan|Xavier, ZClip, ceiling 1}.",
        ),
    ),
    Page(
        "Gradients that vanish in time",
        ("vanishing_rnn", "vanishing_rnn_layers", "vanishing_rnn_powers"),
        "In the adding problem the first of two numbers may lie 30 steps back. A sigmoid RNN gets no gradient "
        "from there. The reason is in the powers of one matrix. *First* and *last layer* are steps in time in the "
        "first table, and steps back through the matrix in the last one.",
        "`test/mse`: which runs leave the level of a constant answer, and when.",
        (
            "Gates do not prevent vanishing at the start: one step back leaves {vanishing_rnn|lstm|per step back, "
            "before} of the gradient in an LSTM, {vanishing_rnn|gru|per step back, before} in a GRU, "
            "{vanishing_rnn|tanh|per step back, before} in a tanh RNN. Training opens them "
            "({vanishing_rnn|lstm|after training}, {vanishing_rnn|gru|after training}); forget gates that are open "
            "from the start have {vanishing_rnn|lstm, open gates|per step back, before} at once.",
            "Over stacked layers an LSTM loses more than a tanh RNN: {vanishing_rnn_layers|lstm} of the last layer's "
            "gradient is left at the first, against {vanishing_rnn_layers|tanh}.",
        ),
    ),
    Page(
        "Activations and initializations",
        ("activations", "activations_matched"),
        "The same fully connected network; only the activation and the initialization change.",
        "`test/accuracy` of the runs with 10 layers, and the *Gradient flow* tab for a pair of them.",
        (
            "ReLU with the framework's default initialization does not learn at depth 10 either "
            "({activations|10 layers, relu, torch}), just like sigmoid ({activations|10 layers, sigmoid, torch}).",
            "tanh with Xavier initialization does not vanish: {activations|10 layers, tanh, xavier} at depth 10, "
            "{activations_matched|20 layers, tanh, xavier} at depth 20.",
            "SiLU and Leaky ReLU are no cure for depth without the matching initialization: "
            "{activations|10 layers, silu, torch} and {activations|10 layers, leaky_relu, torch} at depth 10.",
        ),
    ),
    Page(
        "The scale of the weights",
        ("init_scale", "init_scale_scalar", "init_scale_sigmoid"),
        "What reaches the first layer is decided before training begins. Nothing is trained, so there is nothing "
        "in TensorBoard: the plots have it all.",
        not_held=(
            "The simulation with one unit a layer that is often shown takes the derivative at the wrong index: "
            "its gradient at layer 0 is exactly {init_scale_scalar|as published, scale 1.5}, whatever the weights. "
            "Corrected, it does not explode at scale 1.5 either (share of draws above 1: "
            "{init_scale_scalar|corrected, scale 1.5|share above 1}).",
            "Ten sigmoid layers with N(0, 1) lose one order of magnitude ({init_scale_sigmoid|N(0, 1)}), not many. "
            "It is the small initializations that vanish ({init_scale_sigmoid|N(0, 0.01²)}).",
        ),
    ),
    Page(
        "Clipping by value turns the gradient",
        ("clipping_direction",),
        "Cosine between the raw gradient and what each kind of clipping makes of it, on the same steps of one "
        "run; and what training with each kind comes to.",
        "`gradguard/cosine`: 1 where the direction was kept.",
        (
            "A turned gradient is not a worse one: by value at 0.001 the cosine is lowest "
            "({clipping_direction|value 0.001|cosine}) and the result best ({clipping_direction|value 0.001|bits per "
            "character} bits per character); by value at 0.01 it is {clipping_direction|value 0.01|bits per "
            "character}, by norm {clipping_direction|norm 0.25|bits per character}. At this learning rate clipping "
            "every element of every step comes close to small steps along the sign of the gradient.",
        ),
    ),
    Page(
        "Residual connections against plain depth",
        ("residual_depth",),
        "Fully connected ReLU layers with PyTorch's default initialization.",
        "The *Gradient flow* tab, `20-plain` compared with `20-residual`.",
        (
            "Residual connections alone explode at depth 50 ({residual_depth|50 residual|diverged} runs fail): they "
            "need a normalization ({residual_depth|50 residual + BatchNorm}), or a smaller scale.",
        ),
    ),
    Page(
        "Rare bad batches",
        ("bad_batches",),
        "One batch in 50 was never divided by 255. Without clipping {bad_batches|no clipping|diverged} runs fail. Any "
        "clipping saves them; a fixed norm that does so clips {bad_batches|norm|clip rate} of all steps, ZClip "
        "{bad_batches|zclip|clip rate}.",
        "`grad_norm_total/pre_clip` on a log axis: a comb with a tooth every 50 steps, and `threshold` below it.",
        (
            "An adaptive threshold is not more accurate: {bad_batches|zclip} with ZClip, {bad_batches|norm} with a "
            "fixed norm, {bad_batches|value} by value. What it gains is that healthy steps are left alone.",
        ),
    ),
]


# file of a picture, and what it shows
PICTURES = {
    "tensorboard_curves.png": "*Time Series*, filtered to four tags, norms and loss on a log axis. Without clipping "
    "(`none`) both spike in the first steps, and the loss stays above the others. `clipped_fraction` tells the "
    "policies apart.",
    "tensorboard_hparams.png": "*HParams*, with only `variant` ticked, for the rest is the same in every run: what "
    "each policy came to with one seed.",
    "tensorboard_flow.png": "*Gradient flow*, the plain CNN of 20 layers compared with the cured one. Rows are layers, "
    "input on top; the deeper the blue, the smaller the gradient for the size of the weights. On the right the last "
    "step over depth: the solid line is plain, the dotted one cured.",
}
