"""The texts of the page, in English and Chinese."""

import locale
import os
from dataclasses import dataclass

from retipair.config import Language


@dataclass(frozen=True)
class Words:
    """All texts of the page in one language. Texts with {names} are formats."""

    title: str
    research_only: str
    # The tabs
    pairs_tab: str
    draw_tab: str
    angiogram_tab: str
    # Folders and the review
    folder: str
    folder_hint: str
    open: str
    no_folder: str
    reading: str
    order: str
    position: str
    reviewed: str
    all_reviewed: str
    kept: str
    rejected: str
    undecided: str
    keep: str
    reject: str
    back: str
    previous: str
    next: str
    keys: str
    used_by: str
    # The views of a pair
    side: str
    swipe: str
    flicker: str
    checkerboard: str
    vessels: str
    compare: str
    cf: str
    fa: str
    swipe_at: str
    only_in: str
    both: str
    download: str
    # Scores
    consistency: str
    real_pairs: str
    mispaired_pairs: str
    verdict_real: str
    verdict_below: str
    verdict_mispaired: str
    from_folder: str
    from_documents: str
    nearest: str
    copy: str
    copy_shown: str
    no_copy_search: str
    # Drawing
    amount: str
    angiograms: str
    seed: str
    steps: str
    draw: str
    stop: str
    no_adapter: str
    loading: str
    finished: str
    unfinished: str
    stopped: str
    temporary: str
    photograph: str
    photograph_hint: str
    no_photograph: str
    patient_data: str
    # Commands and errors
    command: str
    copy_command: str
    copied: str
    error: str
    internal: str
    out_of_memory: str


EN = Words(
    title="retipair: colour fundus photographs and angiograms",
    research_only="For research only. Generated images have no clinical validity. This page runs on this machine only, "
    "and sends nothing to other machines.",
    pairs_tab="Review",
    draw_tab="Draw pairs",
    angiogram_tab="Draw angiograms",
    folder="Folder of pairs",
    folder_hint="A prepared or generated folder on this machine",
    open="Open",
    no_folder="Open a folder of pairs to compare and review them.",
    reading="Reading and scoring the pairs. With many pairs, this takes minutes.",
    order="The most doubtful pairs come first: low agreement of the vessels, or similarity to a training pair.",
    position="Pair {number} of {total}",
    reviewed="{done} of {total} reviewed, {rejected} rejected.",
    all_reviewed="All pairs are reviewed.",
    kept="kept",
    rejected="rejected",
    undecided="not reviewed",
    keep="Keep (K)",
    reject="Reject (R)",
    back="Undo (B)",
    previous="Previous (←)",
    next="Next (→)",
    keys="Keys: K keep, R reject, B undo the last decision, ← → move, 1 to 5 choose the comparison.",
    used_by="Decisions are saved at once in review.jsonl in the folder. Commands that leave out the rejected pairs:",
    side="Side by side (1)",
    swipe="Swipe (2)",
    flicker="Flicker (3)",
    checkerboard="Checkerboard (4)",
    vessels="Vessels (5)",
    compare="Comparison of the views",
    cf="Photograph (CF)",
    fa="Angiogram (FA)",
    swipe_at="Border between photograph and angiogram",
    only_in="only in {view}",
    both="in both",
    download="Download:",
    consistency="Agreement of the vessels (consistency)",
    real_pairs="real pairs {low:.2f} to {high:.2f}",
    mispaired_pairs="mispaired {low:.2f} to {high:.2f}",
    verdict_real="as in real pairs",
    verdict_below="lower than in real pairs",
    verdict_mispaired="as in mispaired pairs: the vessels do not agree",
    from_folder="Ranges: 5th to 95th percentile of the pairs in {folder}.",
    from_documents="Ranges: real pairs in general. Start with --real FOLDER for those of your pairs.",
    nearest="Nearest training pair: {id}, similarity {similarity:.2f} (a copy from {copy:.2f} on).",
    copy=(
        "Copy of training pair {id}: similarity {similarity:.2f}. If the training pair is of a patient, do not use "
        "or share this pair."
    ),
    copy_shown="Training pair {id}",
    no_copy_search="Copies are not searched: start with --real FOLDER, the folder of the training pairs.",
    amount="Pairs",
    angiograms="Angiograms",
    seed="Seed",
    steps="Denoising steps",
    draw="Draw",
    stop="Stop after this pair",
    no_adapter="To draw, start the page with an adapter: retipair app --adapter RUN",
    loading="Loading the weights and drawing. The first pair takes longest.",
    finished="{count} of {total} drawn.",
    unfinished="{count} of {total} drawn; the next one is being drawn.",
    stopped="Stopped: {count} of {total} drawn.",
    temporary="Images drawn here are not kept. Download them, or run the command below, which makes the same files.",
    photograph="Colour fundus photograph",
    photograph_hint=(
        "PNG, JPEG, TIFF, BMP, WebP or GIF. The page works on a copy, which stays on this machine and is deleted when "
        "`retipair app` ends."
    ),
    no_photograph="Choose a photograph first.",
    patient_data="An angiogram drawn from a photograph shows the person in the photograph: treat it as patient data.",
    command="The same on the command line",
    copy_command="Copy",
    copied="Copied",
    error="Cannot be used:",
    internal="Internal error ({kind}); the terminal shows the details. Please report it.",
    out_of_memory="Out of memory. Close other programs, or use an adapter trained at a smaller size.",
)

ZH = Words(
    title="retipair：彩色眼底照片与荧光素血管造影",
    research_only="仅供研究使用。生成的图像没有临床效力。本页面只在本机运行，不向其他机器发送任何数据。",
    pairs_tab="审查",
    draw_tab="生成图像对",
    angiogram_tab="生成造影",
    folder="图像对文件夹",
    folder_hint="本机上已对齐或生成的图像对文件夹",
    open="打开",
    no_folder="请打开一个图像对文件夹，以便比较和审查。",
    reading="正在读取图像对并计算分数。图像对较多时需要几分钟。",
    order="最可疑的图像对排在最前：血管一致性低，或与某个训练图像对相似。",
    position="第 {number} 对，共 {total} 对",
    reviewed="已审查 {done} / {total} 对，拒绝 {rejected} 对。",
    all_reviewed="全部图像对已审查。",
    kept="已保留",
    rejected="已拒绝",
    undecided="未审查",
    keep="保留 (K)",
    reject="拒绝 (R)",
    back="撤销 (B)",
    previous="上一对 (←)",
    next="下一对 (→)",
    keys="按键：K 保留，R 拒绝，B 撤销上一个决定，← → 移动，1 至 5 选择比较方式。",
    used_by="每个决定立即写入该文件夹的 review.jsonl。以下命令会采用这些决定：",
    side="并排 (1)",
    swipe="滑动 (2)",
    flicker="交替 (3)",
    checkerboard="棋盘格 (4)",
    vessels="血管 (5)",
    compare="两幅图像的比较方式",
    cf="眼底照片 (CF)",
    fa="血管造影 (FA)",
    swipe_at="照片与造影的分界位置",
    only_in="仅 {view}",
    both="两者皆有",
    download="下载：",
    consistency="血管一致性",
    real_pairs="真实图像对 {low:.2f} 至 {high:.2f}",
    mispaired_pairs="错配 {low:.2f} 至 {high:.2f}",
    verdict_real="与真实图像对相当",
    verdict_below="低于真实图像对",
    verdict_mispaired="与错配的图像对相当：血管不一致",
    from_folder="范围：{folder} 中图像对的第 5 至第 95 百分位数。",
    from_documents="范围：一般的真实图像对。以 --real FOLDER 启动可使用您自己的图像对。",
    nearest="最相似的训练图像对：{id}，相似度 {similarity:.2f}（{copy:.2f} 以上视为复制品）。",
    copy="训练图像对 {id} 的复制品：相似度 {similarity:.2f}。若该训练图像对来自患者，请勿使用或分享本图像对。",
    copy_shown="训练图像对 {id}",
    no_copy_search="未检索复制品：请以 --real FOLDER（训练图像对的文件夹）启动。",
    amount="图像对数量",
    angiograms="造影数量",
    seed="随机种子",
    steps="去噪步数",
    draw="生成",
    stop="本对完成后停止",
    no_adapter="要生成图像，请带适配器启动页面：retipair app --adapter RUN",
    loading="正在加载权重并生成。第一对所需时间最长。",
    finished="已生成 {count} / {total}。",
    unfinished="已生成 {count} / {total}，正在生成下一对。",
    stopped="已停止：已生成 {count} / {total}。",
    temporary="在此生成的图像不会保留。请下载，或运行下面的命令，得到相同的文件。",
    photograph="彩色眼底照片",
    photograph_hint=(
        "PNG、JPEG、TIFF、BMP、WebP 或 GIF。页面使用照片的副本：副本只留在本机，`retipair app` 命令结束时删除。"
    ),
    no_photograph="请先选择一张照片。",
    patient_data="由照片生成的造影显示照片中的人：请按患者数据处理。",
    command="对应的命令行",
    copy_command="复制",
    copied="已复制",
    error="无法使用：",
    internal="内部错误（{kind}），详情见终端。请报告此问题。",
    out_of_memory="内存不足。请关闭其他程序，或使用以更小尺寸训练的适配器。",
)


def words_of(language: Language) -> Words:
    """Return the texts of a language; auto: Chinese if the locale of the terminal is Chinese, else English."""
    if language == "auto":
        names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
        chosen = next(filter(None, names), None) or locale.getlocale()[0] or ""
        language = "zh" if chosen.lower().startswith(("zh", "chinese")) else "en"
    return ZH if language == "zh" else EN


def html_lang(words: Words) -> str:
    """Return the value of the attribute `lang` of the page."""
    return "zh-CN" if words is ZH else "en"
