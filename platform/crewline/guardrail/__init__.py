"""The guardrail: it judges every tool call before it runs; nothing runs without its signed verdict.

service.py       Guardrail, the role that an Engine runs: verdicts, approvals at their deadline
judge.py         the chain of checks in its order, and the decision
decode.py        check 0: one strict JSON object, no characters that cannot be seen
catalogue.py     check 1: may this agent call this tool, and is it the one it saw; suggestions
                 (check 2, the closed schema, is crewline/schemas.py)
limits.py        check 3: the run's budget, repeats
windows.py       check 3: limits over windows, which span conversations: what a call would take of which
days.py          budgets for the day
counters.py      what is taken of each limit: the fold of <ns>.limits
keeper.py        LimitKeeper, the role that owns the counters and answers
policies.py      check 6: policies, all of them, the strictest wins
facts.py         what policies are checked against, looked up by the guardrail itself
audit.py         the hash chain and its signed checkpoints
audit_verify.py  the walk that names the first break
dryrun.py        a judgement without a log
"""

from crewline.guardrail.audit import AuditTrail as AuditTrail
from crewline.guardrail.audit import head_after as head_after
from crewline.guardrail.audit_verify import AuditBreak as AuditBreak
from crewline.guardrail.audit_verify import AuditReport as AuditReport
from crewline.guardrail.audit_verify import verify as verify
from crewline.guardrail.dryrun import judge_once as judge_once
from crewline.guardrail.dryrun import judge_with as judge_with
from crewline.guardrail.facts import RunFact as RunFact
from crewline.guardrail.judge import Decision as Decision
from crewline.guardrail.judge import Judge as Judge
from crewline.guardrail.keeper import LimitKeeper as LimitKeeper
from crewline.guardrail.policies import Approvals as Approvals
from crewline.guardrail.policies import FactRule as FactRule
from crewline.guardrail.policies import PolicyRule as PolicyRule
from crewline.guardrail.policies import PolicySet as PolicySet
from crewline.guardrail.service import Guardrail as Guardrail
from crewline.guardrail.windows import LimitRule as LimitRule
