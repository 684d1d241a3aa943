#include "lib/print.h"

#include <stdint.h>

#include "lib/ring3.h"
#include "lib/serial.h"
#include "lib/spin_lock.h"
#include "lib/string.h"

namespace guest {
namespace {

class Output {
 public:
  Output(char* to, size_t size) : to_(to), size_(size) {}

  void Put(char c) {
    if (length_ + 1 < size_) to_[length_] = c;
    ++length_;
  }
  size_t Finish() {
    if (size_ > 0) to_[length_ < size_ ? length_ : size_ - 1] = 0;
    return length_;
  }

 private:
  char* to_;
  size_t size_;
  size_t length_ = 0;
};

struct Field {
  bool zero = false;
  bool left = false;
  size_t width = 0;
};

void PutField(Output& out, const Field& field, bool negative, const char* text, size_t length) {
  const size_t total = length + negative;
  const size_t padding = field.width > total ? field.width - total : 0;
  if (!field.left && !field.zero) {
    for (size_t i = 0; i < padding; ++i) out.Put(' ');
  }
  if (negative) out.Put('-');
  if (field.zero) {
    for (size_t i = 0; i < padding; ++i) out.Put('0');
  }
  for (size_t i = 0; i < length; ++i) out.Put(text[i]);
  if (field.left) {
    for (size_t i = 0; i < padding; ++i) out.Put(' ');
  }
}

void PutNumber(Output& out, const Field& field, uint64_t value, unsigned base, bool negative) {
  char digits[20];
  size_t start = sizeof(digits);
  do {
    digits[--start] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  PutField(out, field, negative, digits + start, sizeof(digits) - start);
}

const char* ParseField(const char* p, Field* field) {
  for (;; ++p) {
    if (*p == '0') {
      field->zero = true;
    } else if (*p == '-') {
      field->left = true;
    } else {
      break;
    }
  }
  while (*p >= '0' && *p <= '9') field->width = field->width * 10 + static_cast<size_t>(*p++ - '0');
  return p;
}

// va_list may be an array type, so it travels in a struct.
struct Arguments {
  va_list list;
};

uint64_t NextInteger(Arguments& arguments, bool wide, bool is_signed) {
  if (wide) return va_arg(arguments.list, uint64_t);
  const auto value = va_arg(arguments.list, uint32_t);
  if (is_signed) return static_cast<uint64_t>(static_cast<int32_t>(value));
  return value;
}

// One conversion; p is behind the '%'. Returns where it ends.
const char* PutConversion(Output& out, const char* p, Arguments& arguments) {
  Field field;
  p = ParseField(p, &field);
  bool wide = false;
  for (; *p == 'l' || *p == 'z'; ++p) wide = true;
  switch (*p) {
    case 's': {
      const char* text = va_arg(arguments.list, const char*);
      if (text == nullptr) text = "(null)";
      PutField(out, field, false, text, strlen(text));
      break;
    }
    case 'c':
      out.Put(static_cast<char>(va_arg(arguments.list, int)));
      break;
    case 'd':
    case 'i': {
      const auto value = static_cast<int64_t>(NextInteger(arguments, wide, true));
      const auto magnitude = static_cast<uint64_t>(value);
      PutNumber(out, field, value < 0 ? 0 - magnitude : magnitude, 10, value < 0);
      break;
    }
    case 'u':
      PutNumber(out, field, NextInteger(arguments, wide, false), 10, false);
      break;
    case 'p':
    case 'x':
      PutNumber(out, field, NextInteger(arguments, wide || *p == 'p', false), 16, false);
      break;
    case 0:
      return p;
    default:
      out.Put(*p);
  }
  return p + 1;
}

struct FormatJob {
  char* to;
  size_t size;
  const char* format;
  Arguments arguments;
};

uint64_t RunFormat(void* argument) {
  auto& job = *static_cast<FormatJob*>(argument);
  Output out(job.to, job.size);
  for (const char* p = job.format; *p != 0;) {
    if (*p == '%') {
      p = PutConversion(out, p + 1, job.arguments);
    } else {
      out.Put(*p++);
    }
  }
  return out.Finish();
}

constinit SpinLock serial_lock;

}  // namespace

size_t FormatV(char* to, size_t size, const char* format, va_list arguments) {
  FormatJob job = {to, size, format, {}};
  va_copy(job.arguments.list, arguments);
  const size_t length = RunInRing3IfFree(RunFormat, &job);  // full speed also under PVM
  va_end(job.arguments.list);
  return length;
}

size_t Format(char* to, size_t size, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const size_t length = FormatV(to, size, format, arguments);
  va_end(arguments);
  return length;
}

void PrintV(const char* format, va_list arguments) {
  char line[512];
  size_t length = FormatV(line, sizeof(line), format, arguments);
  if (length >= sizeof(line)) length = sizeof(line) - 1;
  SpinLock::Guard guard(serial_lock);
  SerialWrite(line, length);
}

void Print(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  PrintV(format, arguments);
  va_end(arguments);
}

}  // namespace guest
