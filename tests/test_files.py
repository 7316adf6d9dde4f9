from __future__ import annotations

import pytest

from stateless_transducer.files import check_output


@pytest.mark.parametrize("name", ["a.pt", "folder/../a.pt", "link.pt", "same.pt"])
def test_input_is_found_by_any_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    given = tmp_path / "a.pt"
    # neither exists
    check_output(tmp_path / "b.pt", checkpoint=given)
    given.touch()
    (tmp_path / "link.pt").symlink_to(given)
    (tmp_path / "same.pt").hardlink_to(given)
    with pytest.raises(ValueError, match=f"`--output` .*{name} is the file that `--lang-dir` .*a.pt names"):
        check_output(tmp_path / name, checkpoint=tmp_path / "none", lang_dir=given)
