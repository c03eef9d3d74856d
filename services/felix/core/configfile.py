"""Felix's configuration file, Calico's `/etc/calico/felix.cfg`: `Name = value` below `[global]`, names in any case.

Later than resources, earlier than the environment. Pure: text in; settings, and what was ignored, out.
"""

from __future__ import annotations

import configparser

from libs.model.felixconfig import FelixConfigurationSpec
from services.felix.core.live import OTHER_NAMES, OURS

SECTION = "global"
_FIELDS = {
    OTHER_NAMES.get(name, name.replace("_", "")).lower(): name
    for name in (*FelixConfigurationSpec.__struct_fields__, *OURS.values())
}


def file_settings(text: str) -> tuple[dict[str, str], list[str]]:
    """(text by the field's name in the resource, what cannot be used). Empty text is "not set"."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        return {}, [f"configuration file: {' '.join(str(error).split())}"]
    found: dict[str, str] = {}
    problems = [
        f"configuration file: [{name}] is not read, settings stand below [{SECTION}]"
        for name in parser.sections()
        if name.lower() != SECTION
    ]
    for section in (name for name in parser.sections() if name.lower() == SECTION):
        for name, value in parser.items(section):
            field = _FIELDS.get(name)
            if field is None:
                problems.append(f"configuration file: {name}: is no setting that can stand there")
            elif value:
                found[field] = value
    return found, problems
