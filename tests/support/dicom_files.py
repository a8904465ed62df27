"""DICOM files for tests, each of a patient whose name must appear nowhere else."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

IDENTITY = {
    "PatientName": "Zebrowski^Quentin",
    "PatientID": "MRN-7734518",
    "OtherPatientIDs": "OTHER-991827",
    "PatientBirthDate": "19470311",
    "PatientAddress": "14 Wisteria Terrace",
    "AccessionNumber": "ACC-55102938",
    "ReferringPhysicianName": "Okonkwo^Adaeze",
    "InstitutionName": "Saint Botolph Infirmary",
    "StudyDate": "20190822",
    "ImageComments": "comment on Zebrowski",
}


def dataset(pixels: np.ndarray, **elements: object) -> Dataset:
    """A dataset whose image is ``pixels``: uint or int [frames, height, width] or without frames.

    Elements named like DICOM's keywords are set on top, None deletes one.
    """
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.SOPInstanceUID = generate_uid()
    bits = 8 * pixels.dtype.itemsize
    values: dict[str, object] = {
        **IDENTITY,
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "NumberOfFrames": len(pixels) if pixels.ndim == 3 else None,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **elements,
    }
    for name, value in values.items():
        if value is not None:
            setattr(made, name, value)
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB" if bits == 8 else "OW"
    return made


def saved(path: Path, made: Dataset) -> Path:
    """Write a dataset to a file."""
    made.save_as(path, enforce_file_format=True)
    return path
