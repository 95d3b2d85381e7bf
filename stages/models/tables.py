"""Where each system lives: name -> package.module:Class, plain strings, one line per system."""

from __future__ import annotations

# One line per system. `hmr recover --ckpt FILE` asks each in turn whether it recognises the file's tensor names.
RECOVERERS: dict[str, str] = {
    "embedded": "stages.models.embedded:EmbeddedRecoverer",
    "dpmesh": "stages.models.dpmesh:DPMeshRecoverer",
    "postometro": "stages.models.postometro:PostoMetroRecoverer",
    "fastmetro": "stages.models.postometro:FastMetroRecoverer",
}
EXTRACTORS: dict[str, str] = {
    "dpmesh": "stages.models.dpmesh:DPMeshExtractor",
    "dpmesh-latents": "stages.models.dpmesh:DPMeshLatents",
    "pare": "stages.models.pare.extractors:PareExtractor",
    "prohmr": "stages.models.pare.extractors:ProHmrExtractor",
    "pct": "stages.models.postometro:PctExtractor",
}
REFINERS: dict[str, str] = {"scorehmr": "stages.models.scorehmr:ScoreHmrRefiner"}
# One line per detector; `--detector auto` takes the first of AUTO_CPU (or AUTO_GPU) whose files are on this machine.
# movenet is in the package, so that there always is one.
DETECTORS: dict[str, str] = {
    "movenet": "stages.models.detectors.movenet:MoveNetDetector",
    "blazepose": "stages.models.detectors.blazepose:BlazePose",
    "vitpose": "stages.models.detectors.vitpose:VitPose",
    "rtmpose": "stages.models.detectors.rtmpose:RtmPose",
    "mmpose": "stages.models.detectors.mmpose:MMPose",
    "pct": "stages.models.detectors.pct:PctPose",
}
# RT-DETR + ViTPose is the most accurate, but takes about 10 s a photo on one CPU thread.
AUTO_GPU = ("vitpose", "rtmpose", "movenet")
AUTO_CPU = ("rtmpose", "vitpose", "movenet")
RANKED = (*AUTO_GPU, "blazepose")  # whose quality is known to each other, in docs/detectors.md
