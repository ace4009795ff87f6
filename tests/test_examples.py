"""Every source gives the right label to the right image, and says what it left out."""

import dataclasses
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from template.data.examples import DataError, Examples, load_examples
from template.data.images.load import load_image
from template.data.sources.files import collect_files, failure_reason, list_files
from template.data.split import to_csv


def touch(root: Path, *names: str) -> Path:
    """Files that hold their own name; finding examples decodes nothing."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def refusal(path) -> str:
    with pytest.raises(DataError) as caught:
        load_examples(str(path))
    return str(caught.value)


def label_of(examples: Examples) -> dict[str, str]:
    return {str(name): examples.class_names[label] for name, label in zip(examples.ids, examples.labels, strict=True)}


def part_of(examples: Examples) -> dict[str, str]:
    return dict(zip(examples.ids.tolist(), examples.parts.tolist(), strict=True))


# Folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path):
    examples = load_examples(str(touch(tmp_path, "dog/2.jpg", "cat/1.jpg", "cat/more/3.JPG", "bird/x")))
    assert examples.class_names == ("bird", "cat", "dog")
    assert label_of(examples) == {"bird/x": "bird", "cat/1.jpg": "cat", "cat/more/3.JPG": "cat", "dog/2.jpg": "dog"}
    assert set(part_of(examples).values()) == {""}
    for name, file in zip(examples.ids, examples.images, strict=True):
        assert file.read_text() == name
    assert examples.skipped == ()


NESTED = ("dog/husky/1", "dog/husky/2", "dog/poodle/3", "dog/4", "cat/5")


def test_inner_folders_are_classes_where_that_is_asked_for(tmp_path, capsys):
    folder = str(touch(tmp_path, *NESTED))
    outer = label_of(load_examples(folder))
    assert outer == {name: name.partition("/")[0] for name in NESTED}
    said = capsys.readouterr().out
    assert f"such as {str(Path('dog/husky'))!r}, are not taken as classes" in said and "class_folders=inner" in said
    inner = load_examples(folder, "inner")
    assert inner.class_names == ("cat", "dog", "dog/husky", "dog/poodle")
    assert label_of(inner) == {name: name.rpartition("/")[0] for name in NESTED}
    assert capsys.readouterr().out == ""


def test_inner_folders_of_parts(tmp_path):
    for part in ("train", "test"):
        touch(tmp_path, *(f"{part}/{name}" for name in ("dog/husky/1", "dog/husky/2", "dog/poodle/3", "cat/siam/5")))
    examples = load_examples(str(tmp_path), "inner")
    assert examples.class_names == ("cat/siam", "dog/husky", "dog/poodle")
    assert sorted(examples.parts) == ["test"] * 4 + ["train"] * 4


def test_inner_folders_that_cannot_be_meant_are_refused(tmp_path):
    touch(tmp_path, "cat/1", "dog/husky/train/1")
    with pytest.raises(DataError, match=r"named like a part, within a class.*train/dog/husky/"):
        load_examples(str(tmp_path), "inner")
    (tmp_path / "dog" / "husky" / "train").rename(tmp_path / "dog" / "husky" / "young")
    (tmp_path / "dog" / "poodle").mkdir()
    with pytest.raises(DataError, match=r"without any file: \['dog/poodle'\]"):
        load_examples(str(tmp_path), "inner")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_links_within_a_class_are_followed_by_neither(tmp_path):
    touch(tmp_path / "in", "cat/1", "dog/husky/2")
    touch(tmp_path / "else", "3")
    (tmp_path / "in" / "dog" / "poodle").symlink_to(tmp_path / "else")
    for kind in ("outer", "inner"):
        examples = load_examples(str(tmp_path / "in"), kind)
        assert len(examples) == 2 and "a symbolic link" in dict(examples.skipped)["dog/poodle"]


def test_a_level_of_labels_is_spelled_in_one_way(tmp_path, capsys):
    touch(tmp_path, *"123456")
    rows = "1,dog/husky\n2,dog/poodle\n3,Dog/terrier\n4,cat\n5,cat\n6,CAT/siam\n"
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    examples = load_examples(str(tmp_path / "t.csv"))
    assert examples.class_names == ("cat", "cat/siam", "dog/husky", "dog/poodle", "dog/terrier")
    assert "'dog' is spelled in 2 ways" in capsys.readouterr().out


def test_parts_are_kept_and_a_class_that_one_lacks_shifts_no_label(tmp_path):
    touch(tmp_path, "train/ants/1", "train/bees/1", "train/wasps/1", "valid/bees/1", "valid/wasps/2", "test/wasps/1")
    examples = load_examples(str(tmp_path))
    assert examples.class_names == ("ants", "bees", "wasps")
    assert label_of(examples)["valid/bees/1"] == "bees"
    assert label_of(examples)["test/wasps/1"] == "wasps"
    assert part_of(examples) == {
        "train/ants/1": "train", "train/bees/1": "train", "train/wasps/1": "train",
        "valid/bees/1": "val", "valid/wasps/2": "val", "test/wasps/1": "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "part"), [("val", "val"), ("valid", "val"), ("Validation", "val"), ("test", "test"), ("TEST", "test")]
)
def test_parts_have_several_names(tmp_path, folder, part):
    examples = load_examples(str(touch(tmp_path, "Train/a/1", "Train/b/1", f"{folder}/a/1", f"{folder}/b/1")))
    assert part_of(examples) == {
        "Train/a/1": "train", "Train/b/1": "train", f"{folder}/a/1": part, f"{folder}/b/1": part
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1.jpg", "2.jpg"], ["no class folders", "2 files", "folder of its own"]),
        ([".hidden/1.jpg"], ["no class folders"]),
        (["train/1.jpg", "train/2.jpg"], ["no class folders", "2 files"]),
        (["train/a/1", "train/b/1", "cats/1"], ["train/ beside ['cats']"]),
        (["train/a/1", "val/a/1", "valid/a/1"], ["names a part twice", "val", "valid"]),
        (["val/a/1", "test/a/1"], ["no train/ folder"]),
    ],
    ids=["flat", "only hidden", "flat train", "class beside train", "val twice", "no train"],
)
def test_a_folder_of_another_shape_is_refused_with_what_it_has(tmp_path, names, said):
    message = refusal(touch(tmp_path, *names))
    assert all(text in message for text in said), message


def test_a_missing_path_and_one_that_is_no_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "photos")
    assert "neither a folder nor a CSV file" in refusal(touch(tmp_path, "photos.zip") / "photos.zip")


def test_an_empty_class_folder_is_refused(tmp_path):
    """It would be an output that nobody trains."""
    touch(tmp_path, "cat/1.jpg", "dog/.DS_Store")
    (tmp_path / "bird" / "inner").mkdir(parents=True)
    assert "Class folders without any file: ['bird', 'dog']" in refusal(tmp_path)


def test_loose_files_are_left_out_and_listed(tmp_path):
    touch(tmp_path, "train/a/1", "train/b/1", "train/loose.jpg", "notes.txt", "test/a/1", ".DS_Store")
    examples = load_examples(str(tmp_path))
    reason = "outside the class folders"
    assert sorted(examples.skipped) == [("notes.txt", reason), ("train/loose.jpg", reason)]
    assert len(examples) == 3


def test_litter_of_operating_systems_is_neither_class_nor_image(tmp_path):
    touch(
        tmp_path,
        "cat/1.jpg", "cat/._1.jpg", "cat/.hidden.jpg", "cat/Thumbs.db", "cat/desktop.ini", "cat/.thumbs/1.jpg",
        "dog/1.jpg", "dog/__MACOSX/._1.jpg", "dog/@eaDir/1.jpg",
        "__MACOSX/cat/._1.jpg", "@eaDir/1.jpg", ".ipynb_checkpoints/1.jpg", ".DS_Store",
    )  # fmt: skip
    examples = load_examples(str(tmp_path))
    assert label_of(examples) == {"cat/1.jpg": "cat", "dog/1.jpg": "dog"}
    named = {name for name, _ in examples.skipped}
    assert named == {
        "cat/.hidden.jpg", "cat/.thumbs", "dog/__MACOSX", "dog/@eaDir", "__MACOSX", "@eaDir", ".ipynb_checkpoints"
    }, "what could be a person's own images is named; what every system leaves is not"  # fmt: skip


WEIRD = ["with space", "new\nline", "'quote'", '"double"', "🌻", "写真", "[*]", "50 %", "-dash", "a,b", "=1+1"]


def test_any_name_that_a_file_can_have(tmp_path):
    names = [f"{folder} {i}/{name}.jpg" for i, folder in enumerate(WEIRD) for name in WEIRD]
    examples = load_examples(str(touch(tmp_path, *names)))
    assert label_of(examples) == {name: name.split("/")[0] for name in names}
    for name, file in zip(examples.ids, examples.images, strict=True):
        assert file.read_text() == name


def test_names_of_another_encoding_can_be_written_to_a_table(tmp_path):
    """An archive made on another system leaves names that are not UTF-8."""
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
        file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/\xe9.jpg"))
        file.write_text("found")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    examples = load_examples(str(tmp_path))
    assert label_of(examples) == {"caf\\xe9/\\xe9.jpg": "caf\\xe9", "cat/1.jpg": "cat", "dog/1.jpg": "dog"}
    assert examples.images[0].read_text() == "found"
    written = dataclasses.replace(examples, digests=examples.ids, parts=examples.ids)
    assert "caf\\xe9/" in to_csv(written).encode().decode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
@pytest.mark.parametrize("locked", [".", "cat", "cat/more"])
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, locked):
    """Its images would be missing without a word."""
    root = touch(tmp_path / "photos", "cat/1.jpg", "cat/more/1.jpg", "dog/1.jpg")
    (root / locked).chmod(0)
    try:
        assert "cannot be listed" in refusal(root)
    finally:
        (root / locked).chmod(0o700)


def test_a_folder_that_vanishes_while_it_is_listed_is_refused(tmp_path, monkeypatch):
    """Like one without permission, which is none to root."""
    with pytest.raises(DataError, match="cannot be listed: No such file"):
        list(list_files(tmp_path / "vanished"))
    monkeypatch.setattr(Path, "iterdir", lambda self: os.scandir(self / "vanished"))
    assert "cannot be listed: No such file" in refusal(tmp_path)


def test_files_come_in_the_same_order_everywhere(tmp_path):
    touch(tmp_path, *(f"{folder}/{number}" for folder in "cab" for number in (10, 9, 1)))
    found = [file.relative_to(tmp_path).as_posix() for file in list_files(tmp_path)]
    assert found == ["a/1", "a/10", "a/9", "b/1", "b/10", "b/9", "c/1", "c/10", "c/9"]


# Tables ----------------------------------------------------------------------------------------------------------


def table(folder: Path, text: str | bytes) -> Path:
    """A table beside the first files that the tables here name."""
    file = touch(folder, "1.jpg", "2.jpg", "b/1.jpg") / "labels.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_table_with_parts_and_groups(tmp_path):
    file = table(
        tmp_path,
        "path,label,split,group\n"
        "b/1.jpg,dog,Train,rex\n"
        '"a, b.jpg", cat ,val,\n'
        "/abs/2.jpg,dog,valid,rex\n"
        "c.jpg,10,test,tom\n"
        "d.jpg,9,,tom\n",
    )
    examples = load_examples(str(file))
    assert label_of(examples) == {"b/1.jpg": "dog", "a, b.jpg": "cat", "/abs/2.jpg": "dog", "c.jpg": "10", "d.jpg": "9"}
    assert examples.class_names == ("10", "9", "cat", "dog")
    assert examples.parts.tolist() == ["train", "val", "val", "test", ""]
    assert examples.groups.tolist() == ["rex", "", "rex", "tom", "tom"]
    assert examples.images[0] == tmp_path / "b/1.jpg"  # beside the table, wherever the program runs
    assert examples.images[2] == Path("/abs/2.jpg")


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n1.jpg,cat\n2.jpg,dog\n",
        "label,path,photographer\ncat,1.jpg,me\ndog,2.jpg,you\n",
        b"\xef\xbb\xbfpath,label\r\n1.jpg,cat\r\n2.jpg,dog\r\n",  # as Excel writes it
        'path, label\n"1.jpg", "cat"\n2.jpg , dog\n',
        "path,label\n\n1.jpg,cat\n\n2.jpg,dog\n\n",
        "file;class\n1.jpg;cat\n2.jpg;dog\n",
        "path\tlabel\n1.jpg\tcat\n2.jpg\tdog\n",
        "Image Path|Category\n1.jpg|cat\n2.jpg|dog\n",
        "sep=;\npath;label\n1.jpg;cat\n2.jpg;dog\n",
        '"sep=,"\r\npath,label\r\n1.jpg,cat\r\n2.jpg,dog\r\n',
        "path;label\n1.jpg;cat\n2.jpg;dog\n".encode("utf-16"),
        "path,label\n1.jpg,cat\n2.jpg,dog\n".encode("utf-16-be"),
        "path\tlabel\n1.jpg\tcat\n2.jpg\tdog\n".encode("utf-32"),
        "\ufeffpath\u200b,\xa0LABEL \n\u200b1.jpg,\xa0cat\n2.jpg\u200e,dog\xa0\n",
        "path,label,\n1.jpg,cat,\n2.jpg,dog,\n",
        "filepaths,labels\n1.jpg,cat\n2.jpg,dog\n",
        "image_id,dx\n1.jpg,cat\n2.jpg,dog\n",
        "Image Index,Diagnosis\n1.jpg,cat\n2.jpg,dog\n",
        "fname,species\n1.jpg,cat\n2.jpg,dog\n",
        'path;label\n"1.jpg";"cat"\n"2.jpg";"dog"\n',
        "path,label\n1.jpg,cat\nPath, Label\n2.jpg,dog\n",
    ],
    ids=[
        "plain",
        "other columns",
        "Excel",
        "spaces",
        "blank lines",
        "semicolons",
        "tabs",
        "bars",
        "sep",
        "sep in quotes",
        "UTF-16",
        "UTF-16 without mark",
        "UTF-32",
        "what cannot be seen",
        "an empty column",
        "Kaggle's birds",
        "skin lesions",
        "X-rays",
        "animals",
        "semicolons and quotes",
        "two tables, one behind the other",
    ],  # fmt: skip
)
def test_ways_to_write_the_same_table(tmp_path, text):
    examples = load_examples(str(table(tmp_path, text)))
    assert label_of(examples) == {"1.jpg": "cat", "2.jpg": "dog"}
    assert examples.groups is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["path,label"]),
        ("size;kind\n1.jpg;cat\n", ["needs columns path,label", "size;kind"]),
        ("1.jpg,cat\n2.jpg,dog\n", ["needs columns path,label", "first line", "1.jpg"]),
        ("path,label\n1.jpg,c\0at\n", ["line 2", "NUL"]),
        (b"PK\3\4\x14\0\6\0\x08\0\0\0!\0", ["spreadsheet", "Save it as CSV"]),
        (
            "path,label\n1.jpg,cat\n2.jpg,nan\n3.jpg,NaN\n",
            ["line 3", "'nan'", "missing value", "2 rows", "rename"],
        ),
        ("path,label\n1.jpg,cat\n2.jpg,N/A\n", ["line 3", "'N/A'", "missing value"]),
        ("path,label\n1.jpg,\n2.jpg,\n", ["line 2", "path and label", "1 other lines"]),
        ("path,label,label\n1.jpg,a,b\n", ["two columns 'label'"]),
        ("path,label\nx/7.jpg,cat\n", ["none of its 1 images", "x/7.jpg", "folder of the table"]),
        ("path,label\n", ["no rows"]),
        ("path,label\n1.jpg,cat\n,dog\n", ["line 3", "path and label"]),
        ("path,label\n1.jpg,cat\n2.jpg\n", ["line 3", "path and label"]),
        ("path,label\n1.jpg,  \n", ["line 2", "path and label"]),
        ("path,label\n\n\n1.jpg,cat\n,dog\n", ["line 5"]),  # blank lines are lines
        ('path,label\n"1\n2.jpg",cat\n,dog\n', ["line 4"]),  # and a name may go over two
        ("path,label,split\n1.jpg,cat,train\n2.jpg,dog,trian\n", ["line 3", "train, val or test", "'trian'"]),
        ("path,label\na,b.jpg,cat\n", ["line 2", "more fields", "comma"]),  # would be the class `b.jpg`
        ('path,label\n1.jpg,"cat\n2.jpg,dog\n3.jpg,dog\n', ["line 2", "quotation mark", "never closed"]),
        ("path,label\n1.jpg,cat\n" + "x" * 200_000 + ",dog\n", ["line 3", "field limit"]),
        ("path,kind\n1.jpg,cat\n", ["column of paths, 'path', but none of labels"]),
        ("size,label\n1.jpg,cat\n", ["column of labels, 'label', but none of paths"]),
        ("path,label\ncaf\xe9.jpg,cat\n".encode("latin-1"), ["UTF-8"]),
    ],
)
def test_errors_of_a_table_name_the_line(tmp_path, text, said):
    message = refusal(table(tmp_path, text))
    assert all(part in message for part in [*said, "labels.csv"]), message


@pytest.mark.parametrize(
    "header",
    [
        "path,label,split,group", "Path,LABEL,Split,Group", "path,label,split ,group ", "file,class,subset,patient_id",
        "filename,category,partition,Subject", "image,target,part,camera", "\ufeffimage_path,Class Name,phase,caseID",
        "img,label,fold,lesion_id",
    ],
)  # fmt: skip
def test_columns_are_recognised_by_their_names_and_that_is_said(tmp_path, capsys, header):
    rows = [
        "1.jpg,cat,Training,p1",
        "2.jpg,dog, trn ,p2",
        "b/1.jpg,cat,HOLD-OUT,p3",
        "x.jpg,cat,dev,p1",
        "y.jpg,dog,test set,",
    ]
    examples = load_examples(str(table(tmp_path, "\n".join([header, *rows]))))
    assert examples.parts.tolist() == ["train", "train", "test", "val", "test"]
    assert examples.groups.tolist() == ["p1", "p2", "p3", "p1", ""]
    said = capsys.readouterr().out
    for name, meaning in zip(header.split(","), ("path", "label", "split", "group"), strict=True):
        spelled = name.strip().removeprefix("\ufeff")
        assert (f"column {spelled!r} is taken as {meaning}" in said) == (spelled != meaning), said


def test_columns_that_are_not_used_are_named_with_what_they_may_have_meant(tmp_path, capsys):
    text = "path,label,Splt,gruop,photographer,camera,patient\n1.jpg,cat,train,a,me,c,p\n2.jpg,dog,train,b,you,c,q\n"
    examples = load_examples(str(table(tmp_path, text)))
    said = capsys.readouterr().out
    assert examples.groups.tolist() == ["p", "q"], "of several that could be groups, the first of the list"
    assert "column 'patient' is taken as group" in said
    assert "'Splt' (did you mean split?)" in said and "'photographer'" in said
    assert "'camera' (another is taken as group; call this one 'group'" in said


@pytest.mark.parametrize("name", ["mode", "stage", "ml_use", "Data Set Type", "tvt"])
def test_a_column_whose_values_are_parts_is_the_split_by_any_name(tmp_path, capsys, name):
    rows = "1.jpg,cat,Train\n2.jpg,dog,TRAIN\nb/1.jpg,cat,validation\n"
    examples = load_examples(str(table(tmp_path, f"path,label,{name}\n{rows}")))
    assert examples.parts.tolist() == ["train", "train", "val"]
    assert f"column {name!r} is taken as split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("is_train", "split"), ("istest", "split"), ("PatientUID", "group"), ("MRN", "group"), ("user", "group"),
     ("StudyInstanceUID", "group"), ("seq", "group"), ("location", "group"), ("age", ""), ("sex", ""), ("width", "")],
)  # fmt: skip
def test_the_nearest_meaning_of_an_unused_column_is_said_and_no_far_one(tmp_path, capsys, name, meaning):
    load_examples(str(table(tmp_path, f"path,label,{name}\n1.jpg,cat,1\n2.jpg,dog,0\n")))
    said = capsys.readouterr().out
    assert f"{name!r} (did you mean {meaning}?)" in said if meaning else said.endswith(f"{name!r}\n"), said


def test_one_group_in_several_spellings_is_one_and_a_missing_one_is_none(tmp_path, capsys):
    rows = "1.jpg,cat,P01\n2.jpg,dog, p01\u200b\nb/1.jpg,cat,nan\n3.jpg,dog,NaN\n4.jpg,dog,P02\n5.jpg,dog,\n"
    examples = load_examples(str(table(tmp_path, f"path,label,group\n{rows}")))
    first, again, *nobody = examples.groups.tolist()
    assert first == again != "" and nobody[:2] == ["", ""] and nobody[2] not in {"", first} and nobody[3] == ""
    assert "2 rows have no group" in capsys.readouterr().out


def test_a_column_that_could_be_parts_is_not_if_its_values_are_none(tmp_path, capsys):
    examples = load_examples(str(table(tmp_path, "path,label,part,fold\n1.jpg,cat,left arm,1\n2.jpg,dog,test,2\n")))
    assert set(examples.parts) == {""}
    said = capsys.readouterr().out
    assert "'part' (its values are not train, val or test)" in said and "'fold' (its values" in said


@pytest.mark.parametrize(
    ("files", "paths", "words"),
    [
        (["a/1.jpg", "b/2.jpg"], ["a\\1.jpg", "b\\2.jpg"], "are read with / for"),
        (["a/1.jpg", "b/2.jpg"], ["photos/a/1.jpg", "photos/b/2.jpg"], "without the first 1 folder of"),
        (["a/1.jpg", "b/2.jpg"], ["C:\\data\\photos\\a\\1.jpg", "C:\\data\\photos\\b\\2.jpg"], "without the first 2"),
        (["a/1.jpg", "b/2.jpg"], ["/home/me/a/1.jpg", "/home/me/b/2.jpg"], "without the first 2 folders"),
        (["images/a/1.jpg", "images/b/2.jpg"], ["a/1.jpg", "b/2.jpg"], "in images/"),
        (["images/1.jpg", "images/2.jpg"], ["old/1.jpg", "old/2.jpg"], "in images/, without the first 1"),
        (["../pics/1.jpg", "../pics/2.jpg"], ["pics/1.jpg", "pics/2.jpg"], "from the folder above"),
        (["cat/1.jpg", "dog/2.jpg"], ["1.jpg", "2.jpg"], "in folders of their labels"),
        (["a/1.jpg", "b/2.jpg"], ["/a/1.jpg", "/b/2.jpg"], "without the / or drive"),
        (["a/1.jpg", "b/2.jpg"], ["D:\\a\\1.jpg", "D:\\b\\2.jpg"], "without the / or drive"),
        (["caf\xe9/1.jpg", "2.jpg"], ["cafe\u0301/1.jpg", "2.jpg"], "another form of Unicode"),
        (["cafe\u0301/1.jpg", "2.jpg"], ["caf\xe9/1.jpg", "2.jpg"], "another form of Unicode"),
        (["Img/1.JPG", "Img/2.JPG"], ["IMG/1.jpg", "IMG/2.jpg"], "in another case"),
        (["a/1.jpg", "a/2.png"], ["a/1", "a/2"], "with an extension"),
    ],
)
def test_paths_that_lead_nowhere_are_found_or_the_whole_table_is_refused(tmp_path, capsys, files, paths, words):
    root = tmp_path / "inner"
    root.mkdir()
    touch(root, *files)
    (root / "t.csv").write_text(f"path,label\n{paths[0]},cat\n{paths[1]},dog\n")
    examples = load_examples(str(root / "t.csv"))
    assert [image.read_text() for image in examples.images] == files
    assert examples.ids.tolist() == paths
    assert words in capsys.readouterr().out


def test_paths_that_could_be_read_in_two_ways_are_refused_with_both(tmp_path):
    touch(tmp_path, "small/1.png", "small/2.png", "large/1.png", "large/2.png")
    (tmp_path / "t.csv").write_text("path,label\n1.png,cat\n2.png,dog\n")
    message = refusal(tmp_path / "t.csv")
    assert "in large/ and in small/: which is meant?" in message
    (tmp_path / "t.csv").write_text("path,label\n1.png,small\n1.png,large\n2.png,large\n")
    assert [label_of_file.parent.name for label_of_file in load_examples(str(tmp_path / "t.csv")).images] == [
        "small", "large", "large"
    ], "the folder of another label is no place to look"  # fmt: skip


def test_one_missing_image_moves_no_other(tmp_path, capsys):
    """Of a table that is right but for a file, no path is read in another way."""
    file = table(tmp_path, "path,label\n1.jpg,cat\n3.jpg,dog\n")
    touch(tmp_path, "b/3.jpg")
    assert load_examples(str(file)).images == [tmp_path / "1.jpg", tmp_path / "3.jpg"]
    assert capsys.readouterr().out == ""


# Names that look the same ----------------------------------------------------------------------------------------

SAME = [
    ("caf\xe9", "cafe\u0301"), ("cat", "cat "), ("cat", "cat\u200b"), ("cat", "Cat"), ("sea lion", "sea\xa0lion"),
    ("cat", "\uff43\uff41\uff54"), ("cat", "c\u0430t"), ("cat", "\ufeffcat"), ("T-shirt", "t\u2011shirt"),
    ("\u30ac", "\u30ab\u3099"), ("\u212bngstrom", "\xc5ngstr\u200dom"), ("weekend", "week\xadend"),
    ("cat", "CAT\u2060"), ("cat", "cat\u2800"), ("lady's slipper", "lady`s slipper"), ('"good"', "\u201cgood\u201d"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_classes_whose_names_look_the_same_are_one_and_that_is_said(tmp_path, capsys, one, other):
    names = (f"train/{one}/1", f"train/{one}/2", f"val/{other}/3", "train/tea/1", "val/tea/1")
    one_cell, other_cell = (f'"{name.replace(chr(34), chr(34) * 2)}"' for name in (one, other))  # as CSV quotes them
    rows = f"path,label\n1.jpg,{one_cell}\n2.jpg,{one_cell}\nb/1.jpg,{other_cell}\n3.jpg,tea\n"
    for source in (touch(tmp_path / "photos", *names), table(tmp_path, rows)):
        examples = load_examples(str(source))
        assert len(examples.class_names) == 2
        kept = examples.class_names.index(unicodedata.normalize("NFC", one))
        assert np.bincount(examples.labels)[kept] == 3
        said = capsys.readouterr().out
        if source.is_dir() or other != "cat ":  # spaces around a cell of a table mean nothing
            assert "is spelled in 2 ways" in said and "(2 images)" in said and "(1 images)" in said


@pytest.mark.parametrize(
    ("one", "other"), [("A", "a"), ("letter A", "letter_a"), ("cat", "cats"), ("m", "rn"), ("Masse", "Ma\xdfe")]
)
def test_classes_whose_names_differ_stay_two(tmp_path, one, other):
    assert len(load_examples(str(touch(tmp_path, f"{one}/1", f"{other}/1"))).class_names) == 2


@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_run_knows_its_classes_in_another_spelling(one, other):
    for trained, given in ((one, other), (other, one)):
        mapped = some(class_names=(given, "bee", "wasp")).with_classes(["wasp", "bee", trained])
        assert mapped.labels.tolist() == [2, 1, 0, 1]


def test_an_older_run_that_has_both_spellings_is_matched_exactly():
    old = ["cat", "Cat", "dog"]
    assert some(class_names=("Cat", "cat", "dog")).with_classes(old).labels.tolist() == [1, 0, 2, 0]
    with pytest.raises(DataError, match="CAT"):
        some(class_names=("CAT", "cat", "dog")).with_classes(old)


# What systems leave behind, parts, levels ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "litter",
    [
        "$RECYCLE.BIN", "$Recycle.Bin", ".Trash-1000", ".Trashes", "lost+found", "System Volume Information", "@eaDir",
        "#recycle", "__MACOSX", ".ipynb_checkpoints", ".thumbnails", ".AppleDouble", ".Spotlight-V100", ".git",
        "@Recycle", ".@__thumb", "RECYCLER", "FOUND.000", ".fseventsd", "#snapshot", "__pycache__", "LOST.DIR",
        "@SynoResource", "@SynoEAStream", "@GMT-2024.01.01-00.00.00", "~snapshot", "@upload_cache", "_gsdata_",
        "$Extend", "$RmMetadata", "OneDriveTemp", "_svn", "PaxHeader", "PaxHeaders.0", "GNUSparseFile.0",
        "Backups.backupdb", "WindowsImageBackup", "Previews.lrdata", "Photos Library.photoslibrary", "@docker",
    ],
)  # fmt: skip
@pytest.mark.parametrize("depth", ["", "cat/", "cat/more/"])
def test_what_systems_leave_behind_is_no_class_and_is_named(tmp_path, litter, depth):
    touch(tmp_path, "cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg", f"{depth}{litter}/S-1-5/x.jpg")
    examples = load_examples(str(tmp_path))
    assert sorted(label_of(examples)) == ["cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg"]
    assert examples.class_names == ("cat", "dog")
    assert [name for name, _ in examples.skipped] == [f"{depth}{litter}"]


def test_litter_that_cannot_be_listed_stops_nothing(tmp_path, monkeypatch):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", "lost+found/x", "cat/$RECYCLE.BIN/x")
    real = os.scandir

    def scandir(place):
        if Path(place).name in {"lost+found", "$RECYCLE.BIN"}:
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(load_examples(str(tmp_path))) == 2


def test_a_folder_that_cannot_be_listed_is_left_out_and_the_others_are_gathered(tmp_path, monkeypatch):
    touch(tmp_path, "in/1.jpg", "in/locked/2.jpg", "in/$RECYCLE.BIN/3.jpg", "4.jpg")
    real = os.scandir

    def scandir(place):
        if Path(place).name in {"locked", "$RECYCLE.BIN"}:
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    given = [tmp_path / "in", tmp_path / "4.jpg"]
    files, left = collect_files(given)
    assert files == [tmp_path / "in/1.jpg", tmp_path / "4.jpg"]
    assert {path.name for path, _ in left} == {"locked", "$RECYCLE.BIN"}
    assert "cannot be listed" in failure_reason(given, left, done=2) and "locked" in failure_reason(given, left, done=2)
    assert failure_reason(given[1:], [], done=1) is None


def test_the_small_files_of_systems_are_counted(tmp_path, capsys):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", ".DS_Store", "cat/.DS_Store", "cat/._1.jpg", "dog/Thumbs.db")
    assert load_examples(str(tmp_path)).skipped == ()
    said = capsys.readouterr().out
    assert "4 system files are ignored (.DS_Store, Thumbs.db, ._*)" in said


def test_what_windows_streams_become_is_no_image(tmp_path, capsys):
    touch(tmp_path, "cat/1.jpg", "cat/1.jpg:Zone.Identifier", "dog/1.jpg", "dog/1.jpg@SynoEAStream", "Thumbs.db:enc")
    assert sorted(label_of(load_examples(str(tmp_path)))) == ["cat/1.jpg", "dog/1.jpg"]
    assert "3 system files are ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"), ("Training", "Testing"), ("train_images", "test_images"), ("TRN", "tst"),
        ("train2017", "test2017"), ("TrainingData", "HoldOut"), ("seg_train/seg_train", "seg_test/seg_test"),
        ("flowers-train", "flowers-test"), ("train set", "test set"), ("images_train", "images_test"),
        ("training_set/training_set", "test_set/test_set"), ("\uff54\uff52\uff41\uff49\uff4e", "t\u0435st"),
    ],
)  # fmt: skip
def test_folders_of_parts_by_many_names(tmp_path, capsys, train, test):
    files = [f"{train}/a/1", f"{train}/b/1", f"{test}/a/1", f"{test}/b/1"]
    examples = load_examples(str(touch(tmp_path, *files)))
    assert examples.class_names == ("a", "b")
    assert part_of(examples) == {name: "train" if name.startswith(f"{train}/") else "test" for name in files}
    assert f"{train.split('/')[0]}/ (train)" in capsys.readouterr().out


def test_parts_in_class_folders(tmp_path, capsys):
    files = ["cat/train/1", "cat/test/1", "dog/train/1", "dog/test/2"]
    examples = load_examples(str(touch(tmp_path, *files)))
    assert label_of(examples) == {name: name[:3] for name in files}
    assert part_of(examples) == {name: name.split("/")[1] for name in files}
    assert "each class folder has a folder per part" in capsys.readouterr().out


def test_a_class_called_train(tmp_path, capsys):
    examples = load_examples(str(touch(tmp_path, "train/1", "bus/1", "car/1")))
    assert examples.class_names == ("bus", "car", "train") and set(examples.parts) == {""}
    assert "'train' is taken as a class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat/1", "dog/1", "test/1"], ["'test'", "beside ['cat', 'dog']", "train/", "rename"]),
        (["cat/1", "dog/1", "test_set/cat/1"], ["'test_set'", "beside ['cat', 'dog']"]),
        (["train/a/1", "train/b/1", "cats/1"], ["Move", "rename"]),
        (["data/train/a/1", "data/train/b/1", "docs/x"], ["a level too high", "--data.path=", "data"]),
        (["data/train/a/1", "data/train/b/1"], ["a level too high", "data"]),
        (["photos/seg_train/a/1", "photos/seg_train/b/1", "x/1"], ["a level too high", "photos"]),
        (["train/images/1", "train/labels/1", "val/images/2"], ["not classes", "detection", "path,label"]),
        (["images/a/1", "annotations/a/1"], ["not classes", "detection"]),
        (["image/1", "mask/1"], ["not classes", "detection"]),
        (["seg_train/a/1", "seg_train/b/1", "seg_test/a/1", "seg_pred/1"], ["beside ['seg_pred']", "Move"]),
        (["x/data/a/1", "x/data/b/1"], ["one folder", "--data.path=", "x/data"]),
        (["x/y/data/train/a/1", "x/y/data/test/a/1"], ["one folder", "x/y/data'"]),
        (["1.jpg", "labels.csv"], ["a table", "--data.path=", "labels.csv"]),
    ],
)
def test_a_wrong_level_or_a_part_beside_classes_is_refused_with_what_to_do(tmp_path, names, said):
    message = refusal(touch(tmp_path, *names))
    assert all(text in message for text in said), message


# What an Examples can do -----------------------------------------------------------------------------------------


def some(**changes) -> Examples:
    fields = {
        "ids": np.array(["p0", "p1", "p2", "p3"]),
        "images": [b"0", b"1", b"2", b"3"],
        "labels": np.array([0, 1, 2, 1]),
        "class_names": ("ant", "bee", "wasp"),
        "parts": np.array(["train", "val", "test", ""]),
        "groups": np.array(["g0", "g1", "g2", "g3"]),
        "digests": np.array(["d0", "d1", "d2", "d3"]),
        "skipped": (("old", "reason"),),
    }
    return Examples(**(fields | changes))


@pytest.mark.parametrize("rows", [np.array([3, 0]), np.array([True, False, False, True])])
def test_take_keeps_all_columns_together(rows):
    taken = some().take(rows, [("new", "other reason")])
    expected = [3, 0] if rows.dtype == int else [0, 3]
    for column, letter in (("ids", "p"), ("groups", "g"), ("digests", "d")):
        assert getattr(taken, column).tolist() == [f"{letter}{i}" for i in expected]
    assert taken.images == [str(i).encode() for i in expected]
    assert taken.labels.tolist() == [[0, 1, 2, 1][i] for i in expected]
    assert taken.parts.tolist() == [["train", "val", "test", ""][i] for i in expected]
    assert taken.skipped == (("old", "reason"), ("new", "other reason"))


def test_labels_are_matched_to_another_list_of_classes_by_name():
    """A test folder without wasps, or with more classes in the model, must not shift any label."""
    model_classes = ["wasp", "fly", "bee", "ant"]
    mapped = some().with_classes(model_classes)
    assert mapped.class_names == tuple(model_classes)
    assert label_of(mapped) == label_of(some())
    assert mapped.labels.tolist() == [3, 2, 0, 2]


def test_classes_that_the_model_does_not_know_are_named():
    with pytest.raises(DataError, match=r"\['bee', 'wasp'\].*knows \['ant', 'fly'\]"):
        some().with_classes(["ant", "fly"])


# Other sources ---------------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    examples = load_examples("digits")
    assert len(examples) == len(set(examples.ids)) == 1797
    assert examples.class_names == tuple("0123456789")
    np.testing.assert_array_equal(examples.labels, digits.target)
    np.testing.assert_allclose(np.array(examples.images), digits.images * 255 / 16, atol=1)
    assert examples.images[0].dtype == np.uint8
    assert np.max(examples.images) == 255


def square(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), value % 256, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def tfds():
    """TensorFlow Datasets with three data sets of our own; 10 * label + number is the grey of an image."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class OwnSquares(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        parts = {"train": [2, 0, 1, 0, 2, 1], "test": [1, 2, 0], "unlabelled": [0]}
        keys = ("image", "label")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["zebra", "ant", "moth"]),  # not in alphabetical order
                "number": np.int64,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=self.keys
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(labels) for name, labels in self.parts.items()}

        def _generate_examples(self, labels):
            for number, label in enumerate(labels):
                yield number, {"image": io.BytesIO(square(10 * label + number)), "label": label, "number": number}

    class OwnOnePart(OwnSquares):
        parts = {"train": [0, 1, 2]}

    class OwnSecretLabels(OwnSquares):
        parts = {"train": [0, 1, 2], "test": [-1, -1]}

    class OwnNumbers(OwnSquares):
        keys = ("image", "number")

    return tfds


@pytest.fixture
def own_data(tfds, tmp_path, monkeypatch):
    """Lets TensorFlow Datasets build in a folder of the test and nowhere else."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))


def test_a_tensorflow_dataset_keeps_bytes_labels_and_parts(own_data):
    examples = load_examples("tfds:own_squares")
    assert examples.class_names == ("zebra", "ant", "moth")
    assert sorted(examples.ids) == [*(f"test/{i:06d}" for i in range(3)), *(f"train/{i:06d}" for i in range(6))]
    for part, labels in (("train", [2, 0, 1, 0, 2, 1]), ("test", [1, 2, 0])):
        rows = np.flatnonzero(examples.parts == part)
        # The dataset has an order of its own. Each image knows which one it is.
        greys = [int(load_image(examples.images[row], 16, "crop")[0, 0, 0]) for row in rows]
        assert [10 * label for label in examples.labels[rows]] == [grey // 10 * 10 for grey in greys]
        assert sorted(greys) == sorted(10 * label + number for number, label in enumerate(labels))
    assert examples.images[0] in [square(grey) for grey in range(30)]  # encoded as they came, not decoded before


def test_a_tensorflow_dataset_of_one_part_is_left_to_be_split(own_data):
    examples = load_examples("tfds:own_one_part")
    assert sorted(examples.labels) == [0, 1, 2]
    assert set(examples.parts) == {""}


def test_images_without_a_label_do_not_get_the_last_one(own_data):
    examples = load_examples("tfds:own_secret_labels")
    assert sorted(examples.labels) == [0, 1, 2]
    assert examples.skipped == (("test/000000", "it has no label"), ("test/000001", "it has no label"))


def test_tensorflow_datasets_that_cannot_be_used(own_data):
    assert "one class label each" in refusal("tfds:own_numbers")
    assert "'own_nothing' could not be loaded" in refusal("tfds:own_nothing")
