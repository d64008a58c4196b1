"""Brains: how agents think.

base.py      what every brain promises (Brain, StepRequest, Reply…)
native.py    any OpenAI-compatible model, over the openai SDK
scripted.py  answers from a file, for tests, demos and offline use
"""

from crewline_agents.base import Brain as Brain
from crewline_agents.base import CallText as CallText
from crewline_agents.base import ChatMessage as ChatMessage
from crewline_agents.base import Note as Note
from crewline_agents.base import Reply as Reply
from crewline_agents.base import StepItem as StepItem
from crewline_agents.base import StepRequest as StepRequest
from crewline_agents.base import TextDelta as TextDelta
from crewline_agents.base import ToolOffer as ToolOffer
from crewline_agents.base import Usage as Usage
