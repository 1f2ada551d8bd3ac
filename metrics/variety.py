"""How varied a class is, in words: recognition alone is reached by one good picture drawn again and again."""

ICON, NARROW = 1 / 3, 2 / 3  # shares of what held-out real images reach


def figure(records, name, label):
    """The last record of the metric `name`, with or without '@features', for the class `label`; None where absent."""
    found = [r for r in records if r["metric"].split("@")[0] == name and r["class"] == label]
    return found[-1] if found else None


def share_of_real(record):
    """A figure as a share of what held-out real images reach; None where either is not known."""
    if record is None or record["value"] is None or not record.get("real"):
        return None
    return record["value"] / record["real"]


def kind(records, label):
    """'icon', 'narrow' or 'varied' for a class, by the better of recall and coverage; '' where neither was measured.

    Recall asks whether the fakes reach as far as the real images do, coverage whether they come near all of them; one
    picture again and again does neither. Both are compared with held-out real images at the same counts.
    """
    shares = [share_of_real(figure(records, name, label)) for name in ("recall", "coverage")]
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    return "icon" if max(known) < ICON else "narrow" if max(known) < NARROW else "varied"


WORDS = {"icon": "an ICON: nearly one picture, again and again", "narrow": "NARROW: a part of the class",
         "varied": "varied", "": "not measured; --metrics precision_recall_density_coverage vendi"}


def variety(records, label):
    """How varied a class is, in words and figures, as 'NARROW: a part of the class: recall 20% (real images: 93%)'."""
    parts = []
    for name in ("recall", "coverage"):
        of = figure(records, name, label)
        if of and of["value"] is not None:
            real = f" (real images: {of['real']:.0%})" if of.get("real") is not None else ""
            parts.append(f"{name} {of['value']:.0%}{real}")
    vendi = figure(records, "vendi", label)
    if vendi and vendi["value"] is not None:
        real = f" (real images: {vendi['real']:.1f})" if vendi.get("real") else ""
        parts.append(f"{vendi['value']:.1f} different images by Vendi{real}")
    return WORDS[kind(records, label)] + (f": {', '.join(parts)}" if parts else "")


def sentence(records, label):
    """What a headline says of a class: how many are recognised, and in the same breath how varied they are."""
    recognised = figure(records, "recognition", label)
    said = f"{recognised['value']:.1%} recognised; " if recognised and recognised["value"] is not None else ""
    return f"{label}: {said}variety {variety(records, label)}"
