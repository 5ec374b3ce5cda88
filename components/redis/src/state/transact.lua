-- KEYS: the key of each operation. ARGV: for each operation five texts, 'set' or 'delete',
-- expected version or '', '1' for first-write, life time in ms or '', value.
-- Gives 0 when all were applied, or the number of the first that conflicts; then none was.
local seen = {}
for i = 1, #KEYS do
  local key, at = KEYS[i], (i - 1) * 5
  local now = seen[key]
  if not now then
    local old = redis.pcall('HMGET', key, 'version', 'first-write')
    if old.err then
      if not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
      -- A document of the JSON module has a version, too; its next one goes on from there.
      local version = redis.pcall('JSON.GET', key, '.version')
      if type(version) ~= 'string' or not tonumber(version) then version = false end
      now = { other = true, past = tonumber(version or '0'), version = version, first = false }
    else
      now = { other = false, version = old[1], first = old[2] }
      if now.version == '' then now.version = false end
      if now.version and not tonumber(now.version) then
        return redis.error_reply('ERR the version of a value is not an integer')
      end
    end
    seen[key] = now
  end
  if now.version then
    if ARGV[at + 2] ~= '' then
      if ARGV[at + 2] ~= now.version then return i end
    elseif ARGV[at + 1] == 'set' and ARGV[at + 3] == '1' and now.first then
      return i
    end
  end
  if ARGV[at + 1] == 'set' then
    now.version = string.format('%.0f', (tonumber(now.version or '0')) + 1)
    now.first = ARGV[at + 3] == '1'
  else
    now.version, now.first = false, false
  end
end
-- Nothing refuses from here on.
for i = 1, #KEYS do
  local key, at = KEYS[i], (i - 1) * 5
  local now, past = seen[key], 0
  if now.other then
    redis.call('DEL', key)
    now.other, past = false, now.past
  end
  if ARGV[at + 1] == 'set' then
    redis.call('HINCRBY', key, 'version', string.format('%.0f', past + 1))
    if ARGV[at + 3] == '1' then
      redis.call('HSET', key, 'data', ARGV[at + 5], 'first-write', '0')
    else
      redis.call('HSET', key, 'data', ARGV[at + 5])
      redis.call('HDEL', key, 'first-write')
    end
    if ARGV[at + 4] ~= '' then redis.call('PEXPIRE', key, ARGV[at + 4]) else redis.call('PERSIST', key) end
  else
    redis.call('DEL', key)
  end
end
return 0
