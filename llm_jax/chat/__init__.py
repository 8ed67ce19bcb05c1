"""Conversations: messages, templates, and the tokens that they become, for training and for serving. No JAX."""

from llm_jax.chat.formats import FORMATS
from llm_jax.chat.messages import ChatError, Message, ToolCall, check, from_dict, parse_arguments
from llm_jax.chat.render import Chat, Rendered, attach_template, open_any_chat, open_chat
from llm_jax.chat.session import Session
from llm_jax.chat.template import Template

__all__ = [
    'FORMATS',
    'Chat',
    'ChatError',
    'Message',
    'Rendered',
    'Session',
    'Template',
    'ToolCall',
    'attach_template',
    'check',
    'from_dict',
    'open_any_chat',
    'open_chat',
    'parse_arguments',
]
