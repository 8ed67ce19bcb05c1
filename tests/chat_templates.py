"""Chat templates of the kinds that models come with, in our own words: name -> (Jinja, special tokens).

Each has what makes that kind hard: tools, thoughts that go when a conversation goes on, dates, macros, namespaces, loop
controls, white space control, refusals, marks that are made of roles, turns that end otherwise at the end.
"""

from llm_jax.chat.formats import FORMATS

_IM = ('<|im_start|>', '<|im_end|>')
TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    name: (one.source, one.marks or ('<|x|>',)) for name, one in FORMATS.items()
}
TEMPLATES |= {
    'lines': ('{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n', ('<|x|>',)),
    'chatml in a line': (
        "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        _IM,
    ),
    # A date, tools in the user's message, a string filter, roles renamed.
    'headers': (
        """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "1 Jan 2024" %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- if messages | length == 0 %}{{- raise_exception("there is no message for the tools") }}{%- endif %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nThe functions:\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("only one call at once") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}{{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
        ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|python_tag|>'),
    ),
    # Thoughts only after the last question; tools' results within a user's turn; a namespace set from behind.
    'thinker': (
        """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(looking=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.looking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
        _IM,
    ),
    # The system message within the first of the user, roles that must alternate, parts.
    'alternating': (
        """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
""",
        ('<start_of_turn>', '<end_of_turn>'),
    ),
    # Channels; thoughts that are dropped; other marks at the very end; a macro that calls itself.
    'channels': (
        """{%- macro type_of(spec) -%}
    {%- if spec.type == "array" -%}
        {{- type_of(spec['items']) if spec['items'] else 'any' -}}{{- "[]" -}}
    {%- elif spec.enum -%}
        {{- '"' + spec.enum | join('" | "') + '"' -}}
    {%- else -%}
        {{- spec.type -}}
    {%- endif -%}
{%- endmacro -%}
{{- "<|start|>system<|message|>Date: " + strftime_now("%Y-%m-%d") + "\\n\\nReasoning: " }}
{{- (reasoning_effort if reasoning_effort is defined else "medium") + "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set given, rest = messages[0].content, messages[1:] %}
{%- else %}
    {%- set given, rest = "", messages %}
{%- endif %}
{%- if given or tools %}
    {{- "<|start|>developer<|message|>" + given }}
    {%- for tool in tools or [] %}
        {{- "\\n// " + tool.function.description + "\\ntype " + tool.function.name + " = (_: {\\n" }}
        {%- for name, spec in (tool.function.parameters.properties or {}).items() %}
            {{- name + ("" if name in (tool.function.parameters.required or []) else "?") + ": " + type_of(spec) + ",\\n" }}
        {%- endfor %}
        {{- "}) => any;" }}
    {%- endfor %}
    {{- "<|end|>" }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in rest -%}
    {%- if message.role == 'assistant' -%}
        {%- if "tool_calls" in message %}
            {%- set later = namespace(found=false) %}
            {%- for future in rest[loop.index:] %}
                {%- if future.role == 'assistant' and "tool_calls" not in future %}{%- set later.found = true %}{%- break %}{%- endif %}
            {%- endfor %}
            {%- if message.content and not later.found %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.content + "<|end|>" }}
            {%- endif %}
            {%- set tool_call = message.tool_calls[0].function %}
            {{- "<|start|>assistant to=functions." + tool_call.name + "<|channel|>commentary json<|message|>" }}
            {{- tool_call.arguments | tojson }}{{- "<|call|>" }}
            {%- set last.name = tool_call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last.name is none %}{{- raise_exception("a result without a call") }}{%- endif %}
        {{- "<|start|>functions." + last.name + " to=assistant<|channel|>commentary<|message|>" + message.content | tojson + "<|end|>" }}
    {%- else -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
""",
        ('<|start|>', '<|message|>', '<|end|>', '<|channel|>', '<|call|>', '<|return|>'),
    ),
    # Marks made of the role.
    'made of roles': (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ('<|system|>', '<|user|>', '<|assistant|>', '<|tool|>', '<|developer|>', '<|end|>'),
    ),
    # No prompt of its own for an answer; the system message in marks that are text.
    'instructions': (
        """{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set loop_messages = messages[1:] %}{% else %}{% set system = '' %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'].strip() + ' ' + eos_token }}
{%- else %}{{ raise_exception('no role ' ~ message['role']) }}{% endif %}
{% endfor %}""",
        ('<|x|>',),
    ),
    # The system message before the last question; calls as a list, with ids of nine characters.
    'late system': (
        """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and message == users[-1] %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{{- tool.function | tojson }}{{- ", " if not loop.last }}{%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + (system_message + "\\n\\n" if loop.last and system_message is defined else "") + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception("calls need ids of nine characters") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' + (", " if not loop.last else "]" + eos_token) }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("only user, assistant and tool") }}
    {%- endif %}
{%- endfor %}
""",
        ('[INST]', '[/INST]', '[TOOL_CALLS]', '[TOOL_RESULTS]', '[/TOOL_RESULTS]', '[AVAILABLE_TOOLS]', '[/AVAILABLE_TOOLS]'),
    ),
    # Marks that are not ASCII; several in a row end a turn with calls.
    'wide marks': (
        """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_tool=false, system='') %}
{%- for m in messages %}{%- if m.role == 'system' %}{% set ns.system = m.content %}{%- endif %}{%- endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
{%- if m.role == 'system' %}{% continue %}{% endif %}
{%- if m.role == 'assistant' and m.tool_calls %}
{{- '<｜Assistant｜>' + m.content + '<｜calls▁begin｜>' }}
{%- for c in m.tool_calls %}{{- '<｜call▁begin｜>' + c.function.name + '\\n```json\\n' + c.function.arguments | tojson + '\\n```<｜call▁end｜>' }}{%- endfor %}
{{- '<｜calls▁end｜>' + eos_token }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<｜Assistant｜>' + content + eos_token }}
{%- elif m.role == 'tool' %}
{{- '<｜output▁begin｜>' + m.content + '<｜output▁end｜>' }}
{%- else %}
{{- '<｜User｜>' + m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>' }}{%- endif %}{% endif %}""",
        ('<｜User｜>', '<｜Assistant｜>', '<｜calls▁begin｜>', '<｜calls▁end｜>', '<｜call▁begin｜>', '<｜call▁end｜>',
         '<｜output▁begin｜>', '<｜output▁end｜>'),
    ),
    # Blocks that trim_blocks and lstrip_blocks change, comments, raw text, a call block.
    'white space': (
        """  {# a comment #}
  {% macro box(title) %}
[{{ title }}] {{ caller() }}
  {% endmacro %}
{% for message in messages %}
    {% if message.role == 'system' %}
      {% continue %}
    {% endif %}
    {% call box(message.role | upper) %}{{ message.content }}{% endcall %}

    {%+ if loop.last %}   kept {% endif %}
{% endfor %}
{% raw %}{{ not a value }}{% endraw %}

{% set block %}
  in a block {{ messages | length }}
{% endset %}
{{ block | indent(2) }}
""",
        ('<|x|>',),
    ),
    # tojson in all its forms, on a whole message and on tools; filters and tests on values.
    'json': (
        """{% for message in messages %}{{ message.content | tojson }}|{{ message.content | tojson(ensure_ascii=true) }}|
{{- {'b': message.role, 'a': [1, none, true, 1.5]} | tojson(sort_keys=true, separators=(',', ':')) }}
{% if message.tool_calls is defined %}{{ message.tool_calls | tojson(indent=2) }}{% endif %}
{% endfor %}{{ tools | tojson(ensure_ascii=true) if tools }}
{{- dict(a=1) | tojson }}{{ dict.fromkeys(['x']) }}{{ messages | map(attribute='role') | unique | join('/') }}{{ '%s-%05d' | format('x', 7) }}
{{- messages | selectattr('role', 'in', ['user', 'tool']) | list | length }}{{ none }}{{ missing }}{{ 'a' ~ 1 }}{{ 7 // 2 }}
""",
        ('<|x|>',),
    ),
    # Loops with else, break, cycler, previtem; conditions within conditions.
    'loops': (
        """{%- for message in messages recursive -%}
    {%- if loop.index > 5 %}{% break %}{% endif -%}
    {{- loop.cycle('<|a|>', '<|b|>') + message.content }}{{ '<|c|>' if loop.changed(message.role) }}
    {%- if loop.previtem is defined and loop.previtem.role == 'tool' %}!{% endif -%}
    {{- loop.revindex0 }}{{ loop.depth }}
{% else %}
nothing
{%- endfor %}{{ range(3) | list }}{% with x = 2 %}{{ x }}{% endwith %}{{ messages[-1].content[:3] }}{{ messages[0].get('name', 'nobody') }}""",
        ('<|a|>', '<|b|>', '<|c|>'),
    ),
    # The assistant's text is said to be; within a loop and a condition.
    'generation': (
        """{{ bos_token }}{% for m in messages %}
{{ '<|' + m['role'] + '|>' }}
{%- if m['role'] == 'assistant' %}
{%- generation -%}
{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|end|>
{%- endgeneration -%}
{% else %}
{{ m['content'] + '<|end|>' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
        ('<|system|>', '<|user|>', '<|assistant|>', '<|tool|>', '<|developer|>', '<|end|>'),
    ),
    # Documents, names of speakers, an end of text only behind the last answer.
    'documents': (
        """{{ bos_token }}{% for d in documents or [] %}<|doc|>{{ d.title | title }}: {{ d['text'] | truncate(20) }}
{% endfor %}
{% for m in messages %}<|role|>{{ m.name or m.role }}<|text|>{{ m.content | replace('\\n', ' ') }}
{%- if m.role == 'assistant' %}{{ eos_token if loop.last else '<|turn|>' }}{% else %}<|turn|>{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|role|>assistant<|text|>{% endif %}""",
        ('<|doc|>', '<|role|>', '<|text|>', '<|turn|>'),
    ),
}
