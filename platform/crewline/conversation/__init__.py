"""The conversation: what a key's records add up to, what is due next, and which records stand.

Everything here is pure: no clock, no I/O, no randomness. Times are those of the records. The worker and
the guardrail fold the same view, so they agree on every number (judgement, execution) without talking.

    intent ─▶ queued ─▶ turn: step 1 ─▶ calls ─▶ step 2 ─▶ … ─▶ end
    a call:  judging ─▶ granted ─▶ closed      held: waits for a person, then judging again
                                               unknown: waits for a person or a late outcome

Invariant: the first record of each id is the only one that may count.

state.py    what a conversation is: Conversation, Turn, Call…, and the ids of their parts
folding.py  what each record does to it, and whether it stands: fold, stands, take
calls.py    how a call moves on, and its turn with it
reserved.py what its calls have reserved of limits over windows
pending.py  what the worker and the guardrail owe it
status.py   what it is doing, in words
view.py     all of this as an engine takes it
"""

from crewline.conversation.folding import FOLD_VERSION as FOLD_VERSION
from crewline.conversation.folding import UNSEALED as UNSEALED
from crewline.conversation.folding import fold as fold
from crewline.conversation.folding import reject as reject
from crewline.conversation.folding import stands as stands
from crewline.conversation.folding import take as take
from crewline.conversation.pending import guard_pending as guard_pending
from crewline.conversation.pending import worker_pending as worker_pending
from crewline.conversation.reserved import DAY as DAY
from crewline.conversation.reserved import answers_of as answers_of
from crewline.conversation.state import Call as Call
from crewline.conversation.state import Conversation as Conversation
from crewline.conversation.state import DoneCall as DoneCall
from crewline.conversation.state import Past as Past
from crewline.conversation.state import Queued as Queued
from crewline.conversation.state import Reserved as Reserved
from crewline.conversation.state import Step as Step
from crewline.conversation.state import Turn as Turn
from crewline.conversation.state import sha256_of as sha256_of
from crewline.conversation.state import step_id as step_id
from crewline.conversation.state import turn_id as turn_id
from crewline.conversation.status import Status as Status
from crewline.conversation.status import describe as describe
from crewline.conversation.status import status_of as status_of
from crewline.conversation.view import SNAPSHOT_VERSION as SNAPSHOT_VERSION
from crewline.conversation.view import ConversationView as ConversationView
