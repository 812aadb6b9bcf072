"""Which architectures vLLM 0.32 has classes for, of those that the planner does not read.

Source: vLLM 0.32, model_executor/models/registry.py. Read only where one is refused.
"""

from __future__ import annotations

from typing import Final

# Written by tests/support/truth/registry.py: begin
_OWN: Final = """
    AXK1ForCausalLM AfmoeForCausalLM ApertusForCausalLM AriaForConditionalGeneration
    AudioFlamingo3ForConditionalGeneration BagelForConditionalGeneration BailingMoeForCausalLM
    BailingMoeV25MTPModel BailingMoeV2ForCausalLM BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM
    BailingMoeV3MTPModel BailingMoeV3VLForConditionalGeneration BeeForConditionalGeneration
    BertForMaskedLM BertForSequenceClassification BertForTokenClassification BertModel
    BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel Blip2ForConditionalGeneration
    BloomForCausalLM CLIPModel ChatGLMForConditionalGeneration ChatGLMModel ClefOmniForJointSchema
    Cohere2ForCausalLM Cohere2MoeForCausalLM Cohere2VisionForConditionalGeneration
    CohereAsrForConditionalGeneration CohereCompassForConditionalGeneration CohereForCausalLM
    ColBERTJinaRobertaModel ColBERTLfm2Model ColBERTModernBertModel ColModernVBertForRetrieval
    ColPaliForRetrieval ColQwen3 ColQwen3_5 Cosmos3EdgeForConditionalGeneration
    Cosmos3ForConditionalGeneration DFlash2DraftModel DFlashDraftModel DFlashLagunaForCausalLM
    DFlashMuseGlimmerAssistantModel DSparkDraftModel DSparkV41DraftModel DbrxForCausalLM
    DeciLMForCausalLM DeepSeekMTPModel DeepSeekV4MTPModel DeepseekForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM
    DeepseekV32MTPModel DeepseekV3BidirectionalModel DeepseekV3ForCausalLM DeepseekV41ForCausalLM
    DeepseekV4ForCausalLM DeepseekV4ForConditionalGeneration DeepseekVLV2ForCausalLM
    DiffusionGemmaForBlockDiffusion Dots3NoteForCausalLM Dots3NoteMTPModel DotsOCRForCausalLM
    Eagle2_5_VLForConditionalGeneration Eagle3DeepseekV2ForCausalLM Eagle3DeepseekV3ForCausalLM
    Eagle3LlamaForCausalLM Eagle3MiniMaxM2ForCausalLM Eagle3Qwen2_5vlForCausalLM
    Eagle3Qwen3ForCausalLM Eagle3Qwen3vlForCausalLM EagleCohereForCausalLM EagleDeepSeekMTPModel
    EagleLlama4ForCausalLM EagleLlamaForCausalLM EagleMiniCPMForCausalLM EagleMistralForCausalLM
    EagleMistralLarge3ForCausalLM EmbeddingGemma2Model Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM
    Ernie4_5_VLMoeForConditionalGeneration ErnieMTPModel Exaone4ForCausalLM
    Exaone4_5_ForConditionalGeneration Exaone4_5_MTP ExaoneForCausalLM ExaoneMoEForCausalLM
    ExaoneMoeForCausalLM ExaoneMoeMTP ExtractHiddenStatesModel FalconForCausalLM FalconH1ForCausalLM
    FalconMambaForCausalLM FireRedASR2ForConditionalGeneration FunASRForConditionalGeneration
    FunAudioChatForConditionalGeneration GLM4VForCausalLM GPT2ForSequenceClassification
    GPT2LMHeadModel GPTJForCausalLM Gemma2ForCausalLM Gemma2Model Gemma3ForCausalLM
    Gemma3ForConditionalGeneration Gemma3TextModel Gemma3nForCausalLM
    Gemma3nForConditionalGeneration Gemma4DSparkModel Gemma4ForCausalLM
    Gemma4ForConditionalGeneration Gemma4MTPModel Gemma4UnifiedForConditionalGeneration
    GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM Glm4MoeLiteMTPModel
    Glm4MoeMTPModel Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration
    Glm5NextForCausalLM Glm5NextForConditionalGeneration Glm5NextMTPModel
    GlmAsrForConditionalGeneration GlmMoeDsaForCausalLM GlmOcrForConditionalGeneration
    GlmOcrMTPModel GptOssForCausalLM Granite4VisionForConditionalGeneration GraniteForCausalLM
    GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM
    GraniteMoeSharedForCausalLM GraniteSWAForCausalLM GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration GteModel GteNewForSequenceClassification GteNewModel
    H2OVLChatModel HCXVisionV2ForCausalLM HF_ColBERT HYV3ForCausalLM HYV3MTPModel HYV4ForCausalLM
    HYV4MTPModel HfMoondream HrmTextForCausalLM HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    IQuestLoopCoderForCausalLM Idefics3ForConditionalGeneration InklingForCausalLM
    InklingForConditionalGeneration InklingMTPModel InternLM2ForCausalLM InternLM2ForRewardModel
    InternLM3ForCausalLM InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    InternS2MobiusForConditionalGeneration InternS2MobiusMTP InternS2PreviewForConditionalGeneration
    InternVLChatModel InternVLForConditionalGeneration IsaacForConditionalGeneration
    JambaForCausalLM JambaForSequenceClassification JinaEmbeddingsV5Model JinaForRanking
    JinaVLForRanking K2HorizonForCausalLM K3DSparkModel KananaVForConditionalGeneration
    KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration KimiK25ForConditionalGeneration
    KimiK3ForConditionalGeneration KimiK3MTPModel KimiLinearForCausalLM
    KimiVLForConditionalGeneration LLaMAForCausalLM LagunaForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration LiLiCorrDraftModel
    LightOnOCRForConditionalGeneration Llama4ForCausalLM Llama4ForConditionalGeneration
    LlamaBidirectionalForSequenceClassification LlamaBidirectionalModel LlamaForCausalLM
    LlamaForCausalLMEagle3 LlamaModel LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel
    Llama_Nemotron_Nano_VL LlavaForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration LlavaOnevision2ForConditionalGeneration
    LlavaOnevisionForConditionalGeneration LongCatFlashMTPModel LongcatFlashForCausalLM
    LongcatFlashNgramForCausalLM Mamba2ForCausalLM MambaForCausalLM MedusaModel MiDashengLMModel
    MiMoForCausalLM MiMoMTPModel MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiMoV2MTPModel
    MiMoV2OmniForCausalLM MiMoV2OmniMTPModel MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMO
    MiniCPMV MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration
    MiniMaxM2ForCausalLM MiniMaxM3MTP MiniMaxM3SparseForCausalLM
    MiniMaxM3SparseForConditionalGeneration Ministral3ForCausalLM Mistral3ForConditionalGeneration
    MistralForCausalLM MistralLarge3ForCausalLM MistralModel MixtralForCausalLM
    ModernBertForSequenceClassification ModernBertForTokenClassification ModernBertModel
    Molmo2ForConditionalGeneration MolmoForCausalLM Moondream3ForCausalLM MoonshotKimiaForCausalLM
    MossAudioModel MossTranscribeDiarizeForConditionalGeneration MuseGlimmerAssistantModel
    MuseGlimmerForCausalLM MuseGlimmerForConditionalGeneration NVLM_D NemotronForCausalLM
    NemotronHForCausalLM NemotronHMTPModel NemotronHPuzzleForCausalLM
    NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3
    NemotronH_Super_Omni_Reasoning_V3 NemotronParseForConditionalGeneration NomicBertModel
    OPTForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM OpenAIPrivacyFilterForTokenClassification
    OpenCUAForConditionalGeneration OpenPanguMTPModel OpenPanguVLForConditionalGeneration
    OpenVLAForActionPrediction OpsColQwen3Model OrionForCausalLM Ovis Ovis2_5 Ovis2_6ForCausalLM
    Ovis2_6_MoeForCausalLM PEagleDraftModel PaddleOCRVLForConditionalGeneration
    PaliGemmaForConditionalGeneration PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM
    PanguUltraMoEForCausalLM Param2MoEForCausalLM PeagleLlamaForCausalLM PeagleQwen3ForCausalLM
    Phi3ForCausalLM Phi3VForCausalLM Phi4ForCausalLMV Phi4MMForCausalLM PhiMoEForCausalLM
    PixtralForConditionalGeneration Plamo3ForCausalLM QianfanOCRForConditionalGeneration
    Qwen2AudioForConditionalGeneration Qwen2ForCausalLM Qwen2ForProcessRewardModel
    Qwen2ForRewardModel Qwen2Model Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration
    Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel Qwen2_5_VLForConditionalGeneration
    Qwen3ASRForConditionalGeneration Qwen3ASRForcedAlignerForTokenClassification
    Qwen3ASRRealtimeGeneration Qwen3DSparkModel Qwen3ForCausalLM Qwen3MoeForCausalLM
    Qwen3NextForCausalLM Qwen3NextMTP Qwen3OmniDSparkModel Qwen3OmniMoeForConditionalGeneration
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3VLNemotronEmbedModel
    Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MTP Qwen3_5MoeForCausalLM
    Qwen3_5MoeForConditionalGeneration Qwen3_5MoeMTP Qwen4ExpForCausalLM
    Qwen4ExpForConditionalGeneration Qwen4ExpMTP RForConditionalGeneration Rnj1ForCausalLM
    RobertaForMaskedLM RobertaForSequenceClassification RobertaForTokenClassification RobertaModel
    SarvamMLAForCausalLM SarvamMoEForCausalLM SiglipModel SkyworkR1VChatModel
    SmolVLMForConditionalGeneration SolarForCausalLM StableLmForCausalLM Step1ForCausalLM
    Step3TextForCausalLM Step3VLForConditionalGeneration Step3p5ForCausalLM Step3p5MTP
    Step3p7ForConditionalGeneration StepVLForConditionalGeneration TeleChat2ForCausalLM
    TeleChat3ForCausalLM TeleFLMForCausalLM Terratorch UltravoxModel UnlimitedOCRForCausalLM
    VoxtralForConditionalGeneration VoxtralRealtimeGeneration VoyageQwen3BidirectionalEmbedModel
    WhisperForConditionalGeneration XLMRobertaForSequenceClassification
    XLMRobertaForTokenClassification XLMRobertaModel Zamba2ForCausalLM
"""
_ON_TRANSFORMERS: Final = """
    ArceeForCausalLM CwmForCausalLM Emu3ForConditionalGeneration FlexOlmoForCausalLM
    GPTBigCodeForCausalLM GPTNeoXForCausalLM GlmForCausalLM HunYuanDenseV1ForCausalLM
    HunYuanMoEV1ForCausalLM HunYuanVLForConditionalGeneration Jais2ForCausalLM MellumForCausalLM
    NanbeigeForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM PhiForCausalLM
    SeedOssForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM VaultGemmaForCausalLM
    VibeVoiceAsrForConditionalGeneration
"""
_BACKEND: Final = """
    TransformersEmbeddingModel TransformersForCausalLM TransformersForSequenceClassification
    TransformersMoEEmbeddingModel TransformersMoEForCausalLM
    TransformersMoEForSequenceClassification TransformersMultiModalEmbeddingModel
    TransformersMultiModalForCausalLM TransformersMultiModalForSequenceClassification
    TransformersMultiModalMoEForCausalLM
"""
_FORMER: Final = """
    AquilaForCausalLM:0.24.0 AquilaModel:0.24.0 ArcticForCausalLM:0.28.0
    AyaVisionForConditionalGeneration:0.24.0 BaiChuanForCausalLM:0.23.0 BaichuanForCausalLM:0.23.0
    BambaForCausalLM:0.23.0 ChameleonForConditionalGeneration:0.28.0 Cheers:0.28.0
    CheersForConditionalGeneration:0.28.0 DonutForConditionalGeneration:0.10.2
    Dots1ForCausalLM:0.23.0 ErnieForSequenceClassification:0.23.0 ErnieForTokenClassification:0.23.0
    ErnieModel:0.23.0 Fairseq2LlamaForCausalLM:0.28.0 FireRedLIDForConditionalGeneration:0.28.0
    FuyuForCausalLM:0.25.0 GritLM:0.28.0 Grok1ForCausalLM:0.24.0 Grok1ModelForCausalLM:0.24.0
    HCXVisionForCausalLM:0.28.0 InternLM2VEForCausalLM:0.23.0 InternLMForCausalLM:0.23.0
    JAISLMHeadModel:0.22.0 MPTForCausalLM:0.28.0 MantisForConditionalGeneration:0.24.0
    MiniMaxForCausalLM:0.23.0 MiniMaxM1ForCausalLM:0.23.0 MiniMaxText01ForCausalLM:0.23.0
    MiniMaxVL01ForConditionalGeneration:0.23.0 MllamaForConditionalGeneration:0.10.2
    MotifForCausalLM:0.10.2 MptForCausalLM:0.28.0 MusicFlamingoForConditionalGeneration:0.24.0
    OuroForCausalLM:0.26.0 PersimmonForCausalLM:0.25.0 Phi3SmallForCausalLM:0.9.2
    Phi4FlashForCausalLM:0.10.2 Phi4MultimodalForCausalLM:0.12.0 Plamo2ForCausalLM:0.26.0
    PrithviGeoSpatialMAE:0.28.0 QWenLMHeadModel:0.23.0 QwenVLForConditionalGeneration:0.23.0
    RWForCausalLM:0.28.0 StableLMEpochForCausalLM:0.28.0 Tarsier2ForConditionalGeneration:0.23.0
    TarsierForConditionalGeneration:0.24.0 TeleChatForCausalLM:0.25.0 XverseForCausalLM:0.23.0
"""
_IN_PLUGINS: Final = """
    BartForConditionalGeneration BartModel Florence2ForConditionalGeneration
    MBartForConditionalGeneration Nemotron3_5AsrForRNNT
"""
_GENERATE_ALL_THE_SAME: Final = """
    ChatGLMModel MiDashengLMModel MossAudioModel Qwen2_5OmniModel UltravoxModel
"""
_SUFFIXES: Final = """
    ForCausalLM:none ForConditionalGeneration:none ChatModel:none LMHeadModel:none
    ForTextEncoding:embed EmbeddingModel:embed ForSequenceClassification:classify
    ForTokenClassification:classify ForAudioClassification:classify ForImageClassification:classify
    ForVideoClassification:classify ClassificationModel:classify ForRewardModeling:embed
    RewardModel:embed Model:embed
"""
# end

_NOT_READ: Final = "not read here"
_MAY_BE: Final = f"the Transformers backend may serve it; {_NOT_READ}"
"""The backend serves what the Transformers library has, or the checkpoint's own code."""


def said_of(architecture: str) -> str:
    """What vLLM 0.32 does with an architecture that the planner refuses, in words."""
    if architecture in _OWN.split():
        return "vLLM 0.32 has it, we do not read it yet"
    if architecture in (*_ON_TRANSFORMERS.split(), *_BACKEND.split()):
        return "it runs on vLLM 0.32's Transformers backend, whose modules have other names"
    served_as = _served_as(architecture)
    if served_as is not None:
        return served_as
    for name, _, version in (entry.partition(":") for entry in _FORMER.split()):
        if name == architecture:
            last = f"{version} was the last with it"
            return f"vLLM 0.32 has no such class any more, {last}; {_MAY_BE}"
    if architecture in _IN_PLUGINS.split():
        return f"vLLM 0.32 has no such class, and names a plugin with it; {_NOT_READ}"
    return f"vLLM 0.32 has no such class; {_MAY_BE}"


def _served_as(architecture: str) -> str | None:
    """How vLLM serves it as a class of another name, in words; None: it does not.

    Source: vLLM 0.32, _normalize_arch of model_executor/models/registry.py. A name that generates
    is no class that pools: config/model.py refuses that.
    """
    ends = [entry.split(":") for entry in _SUFFIXES.split()]
    end, converted_to = _end_of(architecture)
    if not end:
        return None
    known = {*_OWN.split(), *_ON_TRANSFORMERS.split(), *_BACKEND.split()}
    name = next((name for e, _ in ends if (name := architecture.replace(end, e)) in known), None)
    if name is None:
        return None
    if converted_to != "none":
        return f"vLLM 0.32 serves it by conversion of {name}; {_NOT_READ}"
    if name in _GENERATE_ALL_THE_SAME.split() or _end_of(name)[1] == "none":
        return f"vLLM 0.32 serves it as {name}, or by its Transformers backend; {_NOT_READ}"
    return None


def _end_of(name: str) -> tuple[str, str]:
    """The end by which vLLM knows what a class does, and what it is converted to; or "" twice."""
    for entry in _SUFFIXES.split():
        end, _, converted_to = entry.partition(":")
        if name.endswith(end):
            return end, converted_to
    return "", ""
