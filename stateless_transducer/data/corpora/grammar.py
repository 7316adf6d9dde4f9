"""A grammar of short spoken Mandarin requests, for the synthetic corpus.

Written for this project: dates, times, amounts, shopping, travel, weather, calls, the home. Words of a sentence are
separated by blanks, as in AISHELL's transcripts.
"""

from __future__ import annotations

import re

import numpy as np

_ONES = "一二三四五六七八九"

# possible values of a slot; "{...}" in a value is a slot, too
_FILLINGS: dict[str, list[str]] = {
    "one": list(_ONES),
    "day": ["今天", "明天", "后天", *(f"星期{n}" for n in "一二三四五六")],
    "part": ["早上", "上午", "中午", "下午", "晚上"],
    "hour": ["一", "两", *_ONES[2:], "十", "十一", "十二"],
    "time": ["{part} {hour} 点", "{part} {hour} 点 半", "{part} {hour} 点 {tens} 分"],
    "tens": ["十", "二十", "三十", "四十", "五十"],
    "month": [*_ONES, "十", "十一", "十二"],
    "date": ["{month} 月 {month} 号", "{month} 月 {number} 号"],
    "number": ["十 {one}", "二十 {one}", "三十", "二十"],
    "count": ["一", "两", *_ONES[2:], "十", "{number}"],
    "price": ["{tens} {one}", "{one} 百 {tens} {one}", "{one} 千 {one} 百", "{one} 百"],
    "activity": ["开会", "出发", "吃饭", "上课", "看 电影", "跑步", "起床", "看 医生", "打球", "买 菜"],
    "city": ["北京", "上海", "广州", "南京", "西安", "成都", "天津", "重庆", "昆明", "苏州"],
    "place": ["机场", "车站", "学校", "医院", "公园", "银行", "超市", "图书馆", "公司"],
    "vehicle": ["火车", "飞机", "汽车", "高铁"],
    "question": ["多少 钱", "要 多久", "几点 出发", "怎么 走"],
    "room": ["客厅", "卧室", "厨房", "书房"],
    "device": ["灯", "空调", "电视", "风扇", "音响", "窗户"],
    "switch": ["打开", "关上"],
    "goods": ["斤 苹果", "斤 牛肉", "斤 米", "杯 咖啡", "杯 茶", "本 书", "张 票", "张 地图", "瓶 水", "瓶 牛奶"],
    "person": ["妈妈", "爸爸", "老师", "王 经理", "李 医生", "小 张", "姐姐", "哥哥"],
    "call": ["打 电话", "发 消息"],
    "sound": ["音乐", "新闻", "天气 预报", "故事"],
    "weather": ["天气 怎么样", "会 下雨 吗", "冷 不 冷", "热 不 热"],
}

_SENTENCES = [
    "{day} {time} {activity}",
    "{day} {time} 去 {place}",
    "{date} 去 {city} {activity}",
    "{date} {weather}",
    "从 {city} 到 {city} 的 {vehicle} {question}",
    "{part} 从 {place} 到 {place} {question}",
    "{day} {part} 请 把 {room} 的 {device} {switch}",
    "{time} 请 {switch} {room} 的 {device}",
    "{time} {switch} {room} 的 {device} 播放 {sound}",
    "{day} {part} 在 {room} 播放 {sound}",
    "我 想 买 {count} {goods}",
    "{count} {goods} 一共 {price} 元",
    "{goods} {price} 元",
    "{city} {day} {weather}",
    "给 {person} {call}",
    "{time} 给 {person} {call}",
    "提醒 我 {time} {activity}",
    "提醒 {person} {date} {activity}",
    "{person} {day} {part} 想 看 {sound}",
    "{part} 把 {room} 的 空调 温度 调 到 {number} 度",
    "我 的 号码 是 {one} {one} {one} {one} {one}",
    "{city} 的 房 号 是 {one} {one} {one}",
    "{person} {day} 在 {place} {activity}",
    "{city} 的 {vehicle} {time} 到",
]

_SLOT = re.compile(r"\{(\w+)\}")


def sentence(random: np.random.Generator) -> str:
    """Draw a sentence: words separated by single blanks."""

    def fill(match: re.Match[str]) -> str:
        return _SLOT.sub(fill, str(random.choice(_FILLINGS[match[1]])))

    return _SLOT.sub(fill, str(random.choice(_SENTENCES)))


def sentences(random: np.random.Generator, count: int) -> list[str]:
    """Draw ``count`` different sentences."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[sentence(random)] = None
    return list(drawn)
